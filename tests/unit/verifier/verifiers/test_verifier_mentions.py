"""A text that names an option first and mentions others after it: which option it settles on, or none."""

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from vold_verifier.verifiers import mentions
from vold_verifier.verifiers.base import Item
from vold_verifier.verifiers.choice import ChoiceParameters, ChoiceVerifier
from vold_verifier.verifiers.multi_choice import MultiChoiceParameters, MultiChoiceVerifier

CHOICE, MULTI = ChoiceVerifier(), MultiChoiceVerifier()
TEXTS = {"A": "copper", "B": "iron", "C": "silver", "D": "lead"}
LETTERS = st.sampled_from("ABCD")
PARAMETERS = st.sampled_from([ChoiceParameters(options=TEXTS), ChoiceParameters(letters="ABCD"), ChoiceParameters()])
PLACES = st.sampled_from(
    ["Answer: {}", "**Answer:** {}", "The answer is {}", "<answer>{}</answer>", "So.\n答案：{}", "### Answer\n\n{}"]
)
DISMISSALS = (
    *(
        "{0}, not {1}",
        "{0} rather than {1}",
        "{0} instead of {1}",
        "{0}, since {1} is wrong",
        "{0} because {1} is too small",
    ),
    *("{0}. It cannot be {1}.", "{0}; {1} is a distractor", "{0}. Note that {1} is a common mistake.", "{0} over {1}"),
    *("{0}, as opposed to {1}", "{0}, while {1} does not fit", "{0} (not {1})", "{0}, unlike {1}", "{0}，不是{1}"),
    *("{0}. Option {1} describes something else.", "{0}. We rule out {1}.", "not {1} but {0}", "不是{1}而是{0}"),
)
CORRECTIONS = (
    *(
        "{0}. Wait, that is wrong; it should be {1}.",
        "{0}. No, {1}.",
        "{0} → {1}",
        "{0} ... actually, {1}",
        "{0}, sorry, {1}",
    ),
    *("{0}. On second thought, {1}.", "{0}. Hmm, on reflection it's {1}.", "{0}. Correction: {1}", "{0} -> {1}"),
    *("{0}. I change my answer to {1}.", "{0}. Scratch that. It is {1}.", "{0}. I mean {1}.", "{0}，不对，应该是{1}"),
    *("{0}. Actually, the answer is {1}", "{0}. Let me reconsider. The answer is {1}.", "{0}. Oops, {1} is correct."),
)
HEDGES = (
    *(
        "{0} or {1}",
        "{0} (or {1})",
        "{0}, but {1} is also possible",
        "{0} and {1}",
        "{0}/{1}",
        "{0}, or maybe {1}",
        "{0}? Or {1}?",
    ),
    *(
        "{0}. Hmm, maybe {1}.",
        "{0}. Could also be {1}.",
        "either {0} or {1}",
        "{0} & {1}",
        "{0} vs {1}",
        "{0}, though {1} may be right",
    ),
    *(
        "{0}; however, {1} could also be right",
        "{0} with {1} as a close second",
        "{0}或{1}",
        "{0}、{1}",
        "{0}. {1}",
        "({0})({1})",
    ),
    *(
        "{0}, alternatively {1}",
        "{0} (60%), {1} (40%)",
        "{0}. Wait, maybe {1}?",
        "{0}. Or {1}.",
        "{0}, {1}",
        "Option {0} or Option {1}",
    ),
    *("{0} is wrong, so {1}?", "{0}, no, {1} or {0}"),
)


def settled(completion: str, parameters: ChoiceParameters) -> str | None:
    return CHOICE.check(Item(completion, "A"), parameters).extracted


@settings(max_examples=150, deadline=None)
@given(PLACES, st.sampled_from(DISMISSALS), LETTERS, LETTERS, PARAMETERS)
def test_a_dismissed_option_changes_nothing(place, text, first, second, parameters):
    assume(first != second)
    assert settled(place.format(text.format(first, second)), parameters) == first


@settings(max_examples=150, deadline=None)
@given(PLACES, st.sampled_from(CORRECTIONS), LETTERS, LETTERS, PARAMETERS)
def test_a_correction_on_the_same_line_counts(place, text, first, second, parameters):
    assume(first != second)
    assert settled(place.format(text.format(first, second)), parameters) == second


@settings(max_examples=150, deadline=None)
@given(PLACES, st.sampled_from(HEDGES), LETTERS, LETTERS, PARAMETERS)
def test_a_hedge_names_no_option(place, text, first, second, parameters):
    assume(first != second)
    assert settled(place.format(text.format(first, second)), parameters) is None


@settings(max_examples=60, deadline=None)
@given(
    st.sampled_from(["{0}. Wait, {1}.", "{0}. No, it is {1}.", "{0} or {1}", "{0}, but {1} is possible too"]),
    LETTERS,
    LETTERS,
)
def test_an_option_may_be_mentioned_by_its_text(text, first, second):
    assume(first != second)
    completion = "Answer: " + text.format(first, TEXTS[second])
    assert settled(completion, ChoiceParameters(options=TEXTS)) in (None, second)
    assert settled(f"Answer: {TEXTS[first].title()} ({first})", ChoiceParameters(options=TEXTS)) == first
    assert settled(f"Answer: {TEXTS[first].title()} ({second})", ChoiceParameters(options=TEXTS)) is None
    assert settled(f"Answer: {first}. {TEXTS[first].title()}", ChoiceParameters(options=TEXTS)) == first


@pytest.mark.parametrize(
    ("completion", "letter"),
    [
        ("Answer: A. Actually, that is wrong.", None),
        ("La réponse est A, non, B.", "B"),
        ("Die Antwort ist A. Nein, B.", "B"),
        ("La respuesta es A, no, B.", "B"),
        ("La réponse est B, non A.", "B"),
        ("答えはAではない。", None),
        ("정답은 A가 아니다.", None),
        ("La réponse n'est pas A.", None),
        ("A resposta certa é a letra B.", "B"),
        ("Doğru cevap B.", "B"),
        ("Đáp án đúng là B.", "B"),
        ("सही उत्तर B है।", "B"),
        ("คำตอบที่ถูกต้องคือ B", "B"),
        ("Prawidłowa odpowiedź to B.", "B"),
        ("Jawaban yang benar adalah B.", "B"),
        ("Answer: D (none of A, B or C)", "D"),
        ("Answer: B. A and C are incorrect.", "B"),
        ("Answer: D. Both A and B", "D"),
        ("Answer: A. No, because it rusts", "A"),
        ("Answer: I think it is C", "C"),
        ("Either A or B is correct.", None),
        ("I do not think that B is correct.", None),
        ("B is correct, A is wrong.", "B"),
        ("I choose B over A.", "B"),
        ("The box \\boxed{\\Delta E \\ll kT} helps.\n\n**Answer: D**", "D"),
        ("\\boxed{A, B}", None),
        ("<answer>I choose B</answer>", "B"),
        ("Answer: A. I was wrong, B.", None),
        ("Answer: A as well as B", None),
        ("选A还是选B？", None),
        ("选A还是选B？选B。", "B"),
        ("We compare.\nTherefore B.", "B"),
        ("\\boxed{A}\nAnswer: unknown", "A"),
    ],
)
def test_what_is_said_around_an_option(completion, letter):
    assert settled(completion, ChoiceParameters(letters="ABCDEFGHIJ")) == letter


LANGUAGES = (
    *(
        "故选{}",
        "应选{}。",
        "因此选择 {}",
        "答案选 {}",
        "{}项正确",
        "所以正确答案是{}。",
        "【答案】{}",
        "正确选项为 {}",
        "选项{}是正确的",
    ),
    *(
        "정답: {}",
        "정답은 {}입니다.",
        "正解は{}です。",
        "答えは{}です。",
        "الإجابة: {}",
        "الإجابة الصحيحة هي {}",
        "Respuesta: {}",
    ),
    *(
        "La réponse est {}.",
        "Antwort: {}",
        "Ответ: {}",
        "La risposta è {}.",
        "A resposta é {}.",
        "उत्तर: {}",
        "คำตอบ: {}",
    ),
)
DENIALS = (
    "不选{}",
    "{}项错误",
    "答案不是{}",
    "選{0}或{1}",
    "答案是{0}或{1}",
    "정답은 {0} 또는 {1}",
    "Ответ: {0} или {1}",
    "الإجابة: {0} أو {1}",
)


@settings(max_examples=80, deadline=None)
@given(st.sampled_from(LANGUAGES), LETTERS, LETTERS)
def test_options_are_stated_in_other_languages(statement, letter, other):
    completion = "Explanation.\n" + statement.format(letter)
    parameters = ChoiceParameters(options=TEXTS)
    assert CHOICE.check(Item(completion, letter), parameters).correct
    assert CHOICE.check(Item(completion, other), parameters).correct == (letter == other)


@given(st.sampled_from(DENIALS), LETTERS, LETTERS)
def test_options_are_denied_in_other_languages(denial, letter, other):
    assume(letter != other)
    assert settled("Explanation.\n" + denial.format(letter, other), ChoiceParameters(options=TEXTS)) is None


@pytest.mark.parametrize("alphabet", ["أبجد", "कखगघ", "কখগঘ", "กขคง"])
@given(
    position=st.integers(0, 3),
    place=st.sampled_from(["\\boxed{{{}}}", "({})", "الإجابة: {}", "Answer: {}", "उत्तर: ({})"]),
)
def test_options_are_lettered_in_other_scripts(alphabet, position, place):
    assert settled(place.format(alphabet[position]), ChoiceParameters(options=TEXTS)) == "ABCD"[position]


FORMULAS = (
    (r"\frac{1}{2}", r"\dfrac12", "0.5", r"$\frac{1}{2}$"),
    ("π", r"\pi", r"$\pi$"),
    (r"$2 \sqrt{3}$", r"2\sqrt{3}", r"\(2\sqrt 3\)".replace("\\sqrt 3", "\\sqrt{3}")),
    ("7", "7.0", "$7$", "+7"),
    (r"x^2", "x²", "$x^{2}$".replace("{2}", "2")),
    ("26°", "26^\\circ", "$26^{\\circ}$".replace("{\\circ}", "\\circ")),
)


@settings(max_examples=60, deadline=None)
@given(st.permutations(range(len(FORMULAS))), st.data())
def test_an_option_is_named_by_its_formula_in_any_spelling(order, data):
    options = dict(zip("ABCDEF", (FORMULAS[n][0] for n in order), strict=True))
    position = data.draw(st.integers(0, len(order) - 1))
    spelling = data.draw(st.sampled_from(FORMULAS[order[position]]))
    letter = settled(rf"\boxed{{{spelling}}}", ChoiceParameters(options=options))
    assert letter in ("ABCDEF"[position], None)
    if "°" not in options["ABCDEF"[position]] and "²" not in spelling:
        assert letter == "ABCDEF"[position]


def test_a_text_of_one_character_names_its_option_and_a_letter_its_own():
    assert settled(r"\boxed{4}", ChoiceParameters(options={"A": "3", "B": "4"})) == "B"
    assert settled(r"\boxed{y}", ChoiceParameters(options={"A": "x", "B": "y"})) == "B"
    assert settled(r"\boxed{B}", ChoiceParameters(options={"A": "B", "B": "A"})) == "B"
    assert settled(r"\boxed{3}", ChoiceParameters(options={"A": "3", "B": "3"})) is None
    assert settled(r"\boxed{3 or 4}", ChoiceParameters(options={"A": "3", "B": "4"})) is None


SETS = (
    *(
        "Both {0} and {1} are correct.",
        "The correct options are {0} and {1}.",
        "Options {0} and {1} are correct.",
        "{0}和{1}都正确",
    ),
    *(
        "故选{0}{1}。",
        "答案是{0}、{1}",
        "Answers: {0}, {1}",
        "So {0} and {1} are the correct answers.",
        r"\boxed{{{0}、{1}}}",
    ),
    *("The answers are {0} and {1}.", "### Answer\n\n{0}, {1}", "Answer: both {0} and {1}", "{0}, {1} are both true."),
)
NO_SETS = (
    *(
        "Neither {0} nor {1} is correct.",
        "{0} and {1} are wrong.",
        "{0} or {1} is correct.",
        "不选{0}{1}",
        "{0} and {1} may be correct",
    ),
    *(
        "It is not true that {0} and {1} are correct.",
        "The incorrect options are {0} and {1}",
        "{0} and {1} are correct, or not",
    ),
)


@settings(max_examples=80, deadline=None)
@given(st.sampled_from(SETS), st.permutations("ABCD"))
def test_a_sentence_names_a_set_of_options(sentence, letters):
    completion = "We look at each.\n" + sentence.format(*letters)
    parameters = MultiChoiceParameters(options=TEXTS)
    assert MULTI.check(Item(completion, letters[0] + letters[1]), parameters).correct
    assert not MULTI.check(Item(completion, letters[0] + letters[2]), parameters).correct
    assert not MULTI.check(Item(completion, "".join(letters[:3])), parameters).correct


@given(st.sampled_from(NO_SETS), st.permutations("ABCD"))
def test_other_sentences_name_none(sentence, letters):
    completion = "We look at each.\n" + sentence.format(*letters)
    assert not MULTI.check(Item(completion, letters[0] + letters[1]), MultiChoiceParameters(options=TEXTS)).correct


@pytest.mark.parametrize(
    ("text", "letter"),
    [
        (". cannot be determined", "A"),
        (". cannot be determined, since a side is missing", "A"),
        (" cannot be right", None),
        (" or none", None),
        (", or something else", None),
    ],
)
def test_an_options_own_text_is_no_denial_and_an_open_alternative_settles_on_none(text, letter):
    assert mentions.settle("A", text, "ABCD", {"A": "cannot be determined", "B": "12"}) == letter
