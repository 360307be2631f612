"""Where an answer stands: marks, headings, languages, boxes and what is attached to them; never a wrong answer paid."""

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from vold_verifier.reading.extraction import Extraction, find
from vold_verifier.reading.text import symbols_to_latex
from vold_verifier.verifiers.base import Item
from vold_verifier.verifiers.exact import ExactParameters, ExactVerifier
from vold_verifier.verifiers.math import MathParameters, MathVerifier
from vold_verifier.verifiers.numeric import NumericParameters, NumericVerifier

NUMERIC, MATH, EXACT = NumericVerifier(), MathVerifier(), ExactVerifier()
NUMBERS = st.integers(2, 9999)
WORK = st.sampled_from(
    ["We add 31 and 17.\n", "Let me see: 5 + 6 = 11.\n\n", "首先计算 3 + 4 = 7。\n", "<think>31</think>\n"]
)
LABELS = (
    *(
        "Answer",
        "Final Answer",
        "The correct answer",
        "ANSWER",
        "My final answer",
        "答案",
        "最终答案",
        "最後答案",
        "正确答案",
    ),
    *("정답", "최종 답", "答え", "最終的な答え", "الإجابة", "الجواب النهائي", "Respuesta final", "Réponse", "Antwort"),
    *("Ответ", "Resposta", "Risposta finale", "คำตอบ", "उत्तर", "উত্তর", "Jawaban", "Đáp án", "Antwoord", "Jibu"),
)
STATEMENTS = (
    *("So the answer is {}.", "The final answer is therefore {}.", "Thus the result equals {}", "所以答案是{}。"),
    *(
        "因此，最终答案为：{}",
        "故答案为 {}。",
        "따라서 정답은 {}입니다.",
        "したがって、答えは{}です。",
        "La respuesta es {}.",
    ),
    *("La réponse est {}.", "Die Antwort ist {}.", "Die Antwort lautet: {}", "A resposta é {}.", "La risposta è {}."),
    *("Итак, ответ: {}.", "الإجابة هي {}", "تصبح الإجابة النهائية: {}", "इसलिए उत्तर: {} है", "Câu trả lời là {}."),
    *("Hence, the answer is\n\n{}", "所以答案是\n\n{}", "The answer is:\n{}"),
)
MARKS = st.sampled_from(["", "✅ ", "👉 ", "- ", "> ", "### ", "➡️ ", "★ ", "• "])
EMPHASIS = st.sampled_from(["", "**", "__"])
DRESSES = st.sampled_from(["{}", "${}$", "**{}**", "$${}$$", "\\[\n{}\n\\]", "\\({}\\)", "**${}$**"])
ENDINGS = st.sampled_from(
    ["", "\n", "<|im_end|>", "</s>", "<|endoftext|>\n", "<|eot_id|>", "<｜end▁of▁sentence｜>", "\n\nI hope this helps!"]
)


def is_paid(completion: str, number: int) -> bool:
    """Whether `numeric` and `math` reward `completion`; both have the same verdict."""
    item = Item(completion, str(number))
    verdicts = [NUMERIC.check(item, NumericParameters()).correct, MATH.check(item, MathParameters()).correct]
    assert verdicts[0] == verdicts[1], completion
    return verdicts[0]


def assert_paid_for(completion: str, number: int, other: int) -> None:
    assume(other != number)
    assert is_paid(completion, number), completion
    assert not is_paid(completion, other), completion


@settings(max_examples=60, deadline=None)
@given(WORK, MARKS, EMPHASIS, st.sampled_from(LABELS), st.booleans(), st.sampled_from(":："), ENDINGS, NUMBERS, NUMBERS)
def test_a_labelled_line_is_the_answer(work, mark, emphasis, label, inside, colon, ending, number, other):
    line = f"{label}{colon} {number}{emphasis}" if inside else f"{label}{emphasis}{colon} {number}"
    assert_paid_for(f"{work}{mark}{emphasis}{line}{ending}", number, other)


@settings(max_examples=60, deadline=None)
@given(
    WORK, MARKS, EMPHASIS, st.sampled_from(LABELS), st.sampled_from(["", ":", "："]), DRESSES, ENDINGS, NUMBERS, NUMBERS
)
def test_the_answer_stands_below_its_heading(work, mark, emphasis, label, colon, dress, ending, number, other):
    heading = f"{mark}{emphasis}{label}{colon}{emphasis}"
    assert_paid_for(f"{work}{heading}\n\n{dress.format(number)}{ending}", number, other)
    more = f"{work}{heading}\n{dress.format(number)}\n\nThis uses the rule that was shown above.{ending}"
    assert_paid_for(more, number, other)


@settings(max_examples=60, deadline=None)
@given(WORK, st.sampled_from(STATEMENTS), st.sampled_from(["{}", "${}$", "**{}**"]), ENDINGS, NUMBERS, NUMBERS)
def test_a_statement_at_the_end_is_the_answer(work, statement, dress, ending, number, other):
    assert_paid_for(work + statement.format(dress.format(number)) + ending, number, other)
    # A statement in the middle of the text is none; one with a colon, or with the answer below it, is a label.
    assert any(mark in statement for mark in ":：\n") or not is_paid(
        f"{work}{statement.format(number)}\nBut that was only the first step.", number
    )


@given(
    st.sampled_from(["Answer: The answer is {}", "Final Answer: The final answer is ${}$. I hope it is correct."]),
    NUMBERS,
    NUMBERS,
)
def test_a_label_may_be_doubled(line, number, other):
    assert_paid_for("Work.\n" + line.format(number), number, other)


@settings(max_examples=40, deadline=None)
@given(
    st.sampled_from(["The answer is {}.", "Answer: {}", "答案是{}。", "We add.\nThe answer is {}.", "{}"]),
    NUMBERS,
    NUMBERS,
)
def test_an_answer_tag_may_hold_a_statement(inside, number, other):
    assert_paid_for(f"<answer>{inside.format(number)}</answer>", number, other)
    assert_paid_for(f"So \\boxed{{{other}}} at first.\n<answer>{inside.format(number)}</answer>", number, other)


BOXES = (
    *(r"\boxed{%d}", r"\fbox{%d}", r"\framebox{%d}", r"\framebox[2cm]{%d}", r"\bbox[5px, border: 1px solid]{%d}"),
    *(r"\boxed %d", r"$\boxed %d$", r"\boxed%d", "<|begin_of_box|>%d<|end_of_box|>", r"$\boxed{\boxed{%d}}$"),
    *(r"<|begin_of_box|>\boxed{%d}<|end_of_box|>",),
)


@settings(max_examples=40, deadline=None)
@given(WORK, st.sampled_from(BOXES), ENDINGS, NUMBERS, NUMBERS)
def test_every_kind_of_box_is_a_box(work, box, ending, number, other):
    assert_paid_for(f"{work}It is {box % number}{ending}", number, other)
    assume(number != other)
    assert not is_paid(f"It is {box % number}. Now I check: \\boxed{{", number)  # cut off
    assert_paid_for(f"First {box % other}. We check it and find {box % number}", number, other)


@settings(max_examples=40, deadline=None)
@given(
    st.sampled_from(["x=-%s", "$-%s$", "$x = - %s$", "x = −%s", "minus %s", "It is -%s", "$y=-\\,%s$", "= -$%s$"]),
    st.sampled_from(BOXES[:2] + BOXES[8:9]),
    NUMBERS,
)
def test_a_sign_before_the_box_belongs_to_the_answer(sign, box, number):
    completion = "So " + sign % (box % number)
    assert is_paid(completion, -number)
    assert not is_paid(completion, number)


@given(
    st.sampled_from(
        [
            "- %s",
            "a\n- %s",
            "The answer - %s",
            "10 - %s",
            "10 - %s = 7",
            "$x-%s$",
            "$3-%s=7$",
            "Well — %s",
            "%s!",
            "%s. -",
        ]
    ),
    st.sampled_from(BOXES[:2] + BOXES[8:9]),
    NUMBERS,
)
def test_a_dash_or_the_minus_of_a_difference_is_no_sign(around, box, number):
    completion = around % (box % number)
    assert is_paid(completion, number)
    assert not is_paid(completion, -number)


PARTS_OF_FORMULAS = (
    *(
        "$2%s$",
        r"$x = 2 \cdot %s$",
        "$1+%s$",
        "$x+%s$",
        r"$\sqrt{%s}$",
        r"\(\frac{1}{%s}\)",
        r"$\frac{%s}{7}$",
        "$%s!$",
    ),
    *("$%s+1$", "$y=%si$", r"\[%s\cdot 4\]", r"$%s\pi$", r"x = 3%s", r"$\log %s$", r"$\pi%s$."),
)
WHOLE_SIDES = (
    "$2+%s=9$",
    "$x=%s$",
    "$x+1=5$ so $x=%s$",
    "$%s$ - done",
    "$%s = 2+1$",
    r"$\quad %s$",
    "2. $%s$",
    r"\$%s",
)


@settings(max_examples=40, deadline=None)
@given(st.sampled_from(PARTS_OF_FORMULAS), NUMBERS)
def test_a_box_inside_a_formula_is_not_the_answer(formula, number):
    assert not is_paid("So " + formula % rf"\boxed{{{number + 3}}}", number + 3)


@settings(max_examples=40, deadline=None)
@given(st.sampled_from(WHOLE_SIDES), NUMBERS)
def test_a_box_that_is_the_whole_of_a_side_is_the_answer(formula, number):
    assert is_paid("So " + formula % rf"\boxed{{{number}}}", number)


def test_a_box_inside_a_formula_gives_the_value_of_the_formula():
    for completion, value in ((r"Hence $n = 2\boxed{21}$", "42"), (r"Hence $\boxed{3}!$", "6")):
        assert MATH.check(Item(completion, value), MathParameters()).correct


@given(
    st.sampled_from([(r"\times 10^5", 10**5), (r"\cdot 10^{3}", 1000), ("$ × 10^2", 100), (r"^2", None), ("/7", None)]),
    NUMBERS,
)
def test_what_is_attached_to_a_box_belongs_to_the_answer(attached, number):
    text, factor = attached
    completion = rf"We find $\boxed{{{number}}}{text}$"
    assert not MATH.check(Item(completion, str(number)), MathParameters()).correct
    if factor is not None:
        assert is_paid(completion, number * factor)


@given(st.sampled_from([r"^\circ", r"\%", "!", ".", "$ cm", " apples"]), NUMBERS)
def test_units_and_punctuation_after_a_box_change_nothing(attached, number):
    assert MATH.check(Item(rf"We find $\boxed{{{number}}}{attached}", str(number)), MathParameters()).correct


@settings(max_examples=40, deadline=None)
@given(
    st.sampled_from(
        ["Answer: {}", "**Final Answer:** ${}$", "#### {}", "答案：{}", "### Answer\n\n{}", "<answer>{}</answer>"]
    ),
    NUMBERS,
    NUMBERS,
)
def test_a_brief_answer_after_the_box_replaces_it(line, number, other):
    text = line.format(number)
    assert_paid_for(f"On the way we get \\boxed{{{other}}}. That is not all.\n\n{text}", number, other)
    assert_paid_for(f"\\boxed{{{other}}}\n\n{text}", number, other)
    assert_paid_for(f"{text}\n\nSo it is \\boxed{{{number}}}", number, other)
    # A sentence in the same place replaces nothing.
    assert_paid_for(f"\\boxed{{{number}}}\n\nAnswer: the fence around it is {other} metres long", number, other)


@settings(max_examples=60, deadline=None)
@given(NUMBERS, NUMBERS)
def test_a_line_that_equals_an_example_of_the_prompt_is_an_answer_if_it_ends_a_solution(number, other):
    assume(number != other)
    line = f"The final answer is \\boxed{{{number}}} indeed."
    prompt = f"Here is an example.\nQ: how many?\nWe count them.\n{line}\nQ: and now?"
    for completion in (f"I add up all of it.\n{line}", f"<think>{'I count and count and count. ' * 3}</think>{line}"):
        assert NUMERIC.check(Item(completion, str(number), prompt), NumericParameters()).correct
        assert not NUMERIC.check(Item(completion, str(other), prompt), NumericParameters()).correct
    for completion in (line, f"We count them.\n{line}"):
        assert not NUMERIC.check(Item(completion, str(number), prompt), NumericParameters()).correct


@pytest.mark.parametrize(
    ("text", "latex"),
    [
        ("3、4", "3, 4"),
        ("3和4", "3, 4"),
        ("3 또는 4", r"3 \text{ or } 4"),
        ("x=3或x=4", r"x=3 \text{ or } x=4"),
        ("3 oder 4", r"3 \text{ or } 4"),
        ("5厘米", r"5\text{ cm}"),
        ("5 平方米", r"5\text{ m}^2"),
        ("60千米/小时", r"60\text{ km/h}"),
        ("5 см", r"5\text{ cm}"),
        ("3시간", r"3\text{ h}"),
        ("7个", "7"),
        ("无解", "no solution"),
        ("5以上", "5以上"),
        ("5个以上", "5个以上"),
    ],
)
def test_other_languages_are_written_as_latex(text, latex):
    assert symbols_to_latex(text) == latex


OR_WORDS = ("或", "或者", " или ", " أو ", "または", " 또는 ", " oder ", " ou ", "、", "和", " и ", "と")
UNITS = ("厘米", "公斤", "小时", "元", "个", " см", "미터", "時間", "円", "秒")


@settings(max_examples=30, deadline=None)
@given(st.sampled_from(OR_WORDS), NUMBERS, NUMBERS, NUMBERS)
def test_values_joined_in_another_language_are_a_list(word, first, second, other):
    assume(len({first, second, other}) == 3)
    answer = rf"\boxed{{{first}{word}{second}}}"
    assert MATH.check(Item(answer, f"{first}, {second}"), MathParameters()).correct
    assert not MATH.check(Item(answer, f"{first}, {other}"), MathParameters()).correct
    assert not MATH.check(Item(answer, str(first)), MathParameters()).correct


@settings(max_examples=60, deadline=None)
@given(st.sampled_from(UNITS), NUMBERS, NUMBERS)
def test_a_unit_in_another_language_is_a_unit(unit, number, other):
    assert_paid_for(rf"\boxed{{{number}{unit}}}", number, other)


@pytest.mark.parametrize(
    ("completion", "answer"),
    [
        ("\\boxed{42}\n\nAnswer: see above", "42"),
        ("\\boxed{42}\n\n#### Note\nThis was easy.", "42"),
        ("\\boxed{41}\n\n#### 42", "42"),
        ("Final Answer\n------------\n42", "42"),
        ("**Answer:**\n\n- 42", "42"),
        ("**Answer:**\n\n- a\n- b", "- a\n- b"),
        ("Answer:\n```\n42\n```", "42"),
        ("Ответ: -5", "-5"),
        ("Ответ — 5", "5"),
    ],
)
def test_what_stands_around_a_label(completion, answer):
    assert find(completion, Extraction()).answer == answer


def test_verifiers_of_texts_keep_the_words_of_a_marked_answer():
    reference = "The answer is blowing in the wind"
    assert EXACT.check(Item(f"<answer>{reference}</answer>", reference), ExactParameters()).correct


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("We find $x = 3$, that is, about 2.5 metres.", "2.5"),
        ("It is 2.5, so that $x = \\frac{1}{2}$ holds.", r"x = \frac{1}{2}"),
        ("Then\n\\[ x^2 + 1 \\]\nfollows.", "x^2 + 1"),
        ("Nothing here.", None),
    ],
)
def test_anywhere_is_the_last_formula_or_number_and_only_if_it_is_asked_for(text, answer):
    assert find(text, Extraction(accept=("boxed", "anywhere"))).answer == answer
    assert find(text + "\nThe end.", Extraction()).answer is None


@pytest.mark.parametrize(
    "unit", ["答案", "Answer:\n", "<|im_end|>", "\\boxed 1 ", "<|begin_of_box|>", "-\\boxed{1}", "或", "$$", "3或"]
)
@pytest.mark.timeout(30)  # a quadratic rule takes minutes
def test_long_marks_are_read_in_linear_time(unit):
    text = unit * (200_000 // len(unit))
    find(text, Extraction(accept=("boxed", "answer_tag", "answer_line", "statement", "whole", "anywhere")))
    symbols_to_latex(text[:1000])
