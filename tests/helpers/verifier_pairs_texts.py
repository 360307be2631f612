"""Pairs about where an answer stands, how it is said, and the verifiers beside `math`. See verifier_pairs.py."""

import json
from collections.abc import Iterator
from fractions import Fraction
from random import Random

from verifier_pairs import Kind, Pair
from verifier_pairs_values import number

WORDS = (
    "the speed is constant", "we add both sides", "the triangle is right-angled", "each side grows", "there are two cases",
    "the sum telescopes", "half of them remain", "the tank is full", "we substitute back", "the order does not matter",
)  # fmt: skip


def reasoning(rng: Random) -> str:
    """Sentences with other numbers in them."""
    return " ".join(f"{rng.choice(WORDS).capitalize()}, so we get {rng.randrange(2, 99)}." for _ in range(rng.randrange(1, 4)))


def answers(rng: Random) -> tuple[str, str]:
    """(a right answer, a wrong one)."""
    value = Fraction(rng.randrange(-400, 4000), rng.choice([1, 1, 1, 2, 5, 7]))
    return number(value), number(value + rng.choice([1, -1, 10]))


def headings(rng: Random) -> Iterator[Pair]:
    """An answer below its heading."""
    right, wrong = answers(rng)
    heading = rng.choice(
        ["**Final Answer:**", "### Answer", "## Final Answer", "**Answer**", "Final answer:", "### Final Answer:", "**Answer:**",
         "# Answer", "The final answer is:", "Hence, the answer is", "**The final answer is:**", "Answer\n------"]
    )  # fmt: skip
    for paid, answer in ((True, right), (False, wrong)):
        shown = rng.choice([f"**{answer}**", f"${answer}$", f"$${answer}$$", answer, rf"\[{answer}\]", rf"\({answer}\)"])
        gap = rng.choice(["\n", "\n\n"])
        yield Pair(f"{reasoning(rng)}\n\n{heading}{gap}{shown}", right, paid)


def marks(rng: Random) -> Iterator[Pair]:
    """Marks before and after the answer."""
    right, wrong = answers(rng)
    for paid, answer in ((True, right), (False, wrong)):
        shown = rng.choice(
            [f"✅ Final Answer: **{answer}**", f"**Final Answer: {answer}**", f"#### {answer}<|im_end|>", f"#### {answer}",
             f"Final Answer: The final answer is ${answer}$. I hope it is correct.", f"<answer>The answer is {answer}.</answer>",
             f"<answer>{answer}</answer>", f"<answer>\n{answer}\n</answer><|im_end|>", rf"\framebox{{{answer}}}", rf"\fbox{{{answer}}}",
             f"<|begin_of_box|>{answer}<|end_of_box|>", f"The answer is: ${answer}$", f"**Answer:** ${answer}$", f"👉 Answer: {answer}",
             rf"<answer> \boxed{{{answer}}} </answer>", f"Answer: {answer}.", f"> **Answer:** {answer}", f"- Answer: {answer}",
             rf"$\boxed{{{answer}}}$<|endoftext|>", rf"The answer is $\boxed{{{answer}}}$. </s>", f"【答案】{answer}", f"*Answer:* {answer}"]
        )  # fmt: skip
        yield Pair(f"{reasoning(rng)}\n{shown}", right, paid)
    digit = rng.randrange(2, 9)
    yield Pair(rf"{reasoning(rng)} $\boxed {digit}$", str(digit), True)
    yield Pair(rf"{reasoning(rng)} $\boxed{digit}$", str(digit + 1), False)


LANGUAGES = (
    "所以答案是{}。", "答案：{}", "答案是 {}", "故答案为{}", "故答案为：{}。", "最终答案：{}", "因此，最终答案是{}。", "答: {}",
    "La respuesta es {}.", "La respuesta final es {}.", "Respuesta: {}", "La réponse est {}.", "Réponse : {}", "Réponse finale : {}",
    "Die Antwort ist {}.", "Antwort: {}", "Die Antwort lautet {}.", "La risposta è {}.", "Risposta: {}", "A resposta é {}.",
    "Resposta: {}", "Ответ: {}", "Ответ: {}.", "정답은 {}입니다.", "정답: {}", "답: {}", "答えは{}です。", "答え：{}", "الإجابة: {}",
    "الجواب: {}", "उत्तर: {}", "Đáp án: {}", "Cevap: {}", "Odpowiedź: {}", "Antwoord: {}", "Jawaban: {}", "คำตอบ: {}", "Svar: {}",
    "Vastaus: {}", "Відповідь: {}",
)  # fmt: skip


def languages(rng: Random) -> Iterator[Pair]:
    """Statements in other languages."""
    right, wrong = (str(value) for value in rng.sample(range(2, 5000), 2))
    form = rng.choice(LANGUAGES)
    yield Pair(f"{reasoning(rng)}\n{form.format(right)}", right, True)
    yield Pair(f"{reasoning(rng)}\n{form.format(wrong)}", right, False)


FOREIGN_UNITS = (("厘米", "cm"), ("米", "m"), ("千克", "kg"), ("元", ""), ("个", ""), ("人", ""), ("см", "cm"), ("км", "km"), ("кг", "kg"), ("小时", "h"), ("分钟", "min"))


def units_of_languages(rng: Random) -> Iterator[Pair]:
    value = rng.randrange(2, 900)
    unit, symbol = rng.choice(FOREIGN_UNITS)
    other = rng.choice(["以上", "以下", f"或{value + 1}", "左右不对", "倍", f"和{value + 3}"])
    yield Pair(rf"所以\boxed{{{value}{unit}}}", str(value), True)
    yield Pair(rf"\boxed{{{value}\text{{{unit}}}}}", f"{value}{unit}", True)
    yield Pair(rf"\boxed{{{value + 1}{unit}}}", f"{value}{unit}", False)
    yield Pair(rf"\boxed{{{value}{other}}}", str(value), False)
    yield Pair(rf"\boxed{{{value + 4}或{value}}}", f"{value}或{value + 4}", True)
    yield Pair(rf"\boxed{{{value}}}", f"{value}或{value + 4}", False)
    if symbol:
        yield Pair(rf"\boxed{{{value}\text{{ {symbol}}}}}", f"{value}{unit}", True)


def later_lines(rng: Random) -> Iterator[Pair]:
    """An answer line after a formula in a box replaces the box; a sentence does not."""
    right, wrong = answers(rng)
    formula = rng.choice(["E = mc^2", r"\Delta > 0", "a+b", r"\frac{x}{2}", r"n \to \infty", wrong])
    line = rng.choice(["Answer: {}", "**Answer:** {}", "Final Answer: {}", "#### {}", "**Final answer: {}**"])
    yield Pair(rf"Note that $\boxed{{{formula}}}$. {reasoning(rng)}" + "\n\n" + line.format(right), right, True)
    yield Pair(rf"Note that $\boxed{{{right}}}$. {reasoning(rng)}" + "\n\n" + line.format(wrong), right, False)
    yield Pair(rf"{reasoning(rng)} \boxed{{{wrong}}}. No: \boxed{{{right}}}.", right, True)
    yield Pair(rf"{reasoning(rng)} \boxed{{{right}}}. No: \boxed{{{wrong}}}.", right, False)


def several_answers(rng: Random) -> Iterator[Pair]:
    """More answers than the reference has are no answer."""
    first, second, third = rng.sample(range(2, 900), 3)
    joint = rng.choice([" or ", ", ", r" \text{ or } ", r"\text{ and }", "; ", " and "])
    yield Pair(rf"It is \boxed{{{first}{joint}{second}}}.", str(first), False)
    yield Pair(rf"It is \boxed{{{first}}} or \boxed{{{second}}}.", str(first), False)
    yield Pair(rf"It is \boxed{{{first}}} or \boxed{{{second}}}.", f"{second}, {first}", True)
    yield Pair(rf"{{\bf }}It is \boxed{{{second}{joint}{first}}}.", f"{first}, {second}", True)
    yield Pair(f"The answer is {first} or {second}.", str(first), False)
    yield Pair(f"Answer: {first}{joint}{second}{joint}{third}", f"{first}, {third}", False)


def thinking(rng: Random) -> Iterator[Pair]:
    """Only what follows the thinking counts."""
    right, wrong = answers(rng)
    yield Pair(rf"<think>{reasoning(rng)} \boxed{{{wrong}}}</think>" + "\n" + rf"\boxed{{{right}}}", right, True)
    yield Pair(rf"<think>{reasoning(rng)} \boxed{{{right}}}</think>" + "\n" + rf"\boxed{{{wrong}}}", right, False)
    yield Pair(rf"<think>{reasoning(rng)} \boxed{{{right}}}</think>" + "\nI am done with this task now.\nThank you.", right, False)
    yield Pair(rf"<think>{reasoning(rng)} \boxed{{{right}}}", right, False)
    yield Pair(rf"{reasoning(rng)} \boxed{{{right}", right, False)


def prompt_examples(rng: Random) -> Iterator[Pair]:
    """A line that equals an example line of the prompt, and copies of the prompt."""
    right, wrong = (str(value) for value in rng.sample(range(2, 5000), 2))
    example = f"#### The final answer: {right}"
    prompt = f"Q: How many apples are left in the box?\n{example}\n\nQ: How many pears are there, if two are eaten?"
    yield Pair(f"Two pears are eaten, so that we subtract two from the rest.\n{example}", right, True, prompt=prompt)
    yield Pair(f"Two pears are eaten, so that we subtract two.\n#### The final answer: {wrong}", right, False, prompt=prompt)
    yield Pair(prompt, right, False, prompt=prompt)
    yield Pair(example, right, False, prompt=prompt)
    n, m = rng.sample(range(11, 80), 2)
    question = rf"What is the value of ${n}^2+{m}x$ at x = 1? Put it in a box."
    yield Pair(rf"\boxed{{{n}^2+{m}}}", str(n * n + m), True, prompt=question)
    question = rf"What is the value of ${n}^2+{m}$? Put your final answer in a box."
    yield Pair(rf"\boxed{{{n}^2+{m}}}", str(n * n + m), False, prompt=question)
    yield Pair(rf"\boxed{{{n * n + m}}}", str(n * n + m), True, prompt=question)


# -- choices

OPTIONS = (
    ("Paris", "Rome", "Oslo", "Bern"), ("iron", "copper", "silver", "lead"), ("12", "15", "18", "21"), ("x", "y", "z", "w"),
    ("increases", "decreases", "stays the same", "cannot be determined"), ("7", "8", "9", "5"), ("red", "green", "blue", "grey"),
    (r"$\frac{1}{2}$", r"$\frac{1}{3}$", r"$\frac{1}{4}$", r"$\frac{1}{5}$"), ("mitosis", "meiosis", "osmosis", "diffusion"),
)  # fmt: skip
NAMING = (
    "Answer: {}", "**Answer: {}**", "The answer is ({}).", "The answer is {}.", r"\boxed{{{}}}", r"So it is \boxed{{\text{{{}}}}}.", "({})",
    "<answer>{}</answer>", "The correct option is {}.", "I would choose option {}.", "Therefore, the correct answer is **{}**.",
    "Final Answer: ({})", "故选{}", "故选：{}。", "答案：{}", "正确答案是{}。", "选{}", "정답: {}", "Ответ: {}", "Respuesta: {}", "#### {}",
    "Hence option {} is correct.", "{} is correct.", "So the answer must be {}.", "**{}**", "Option {}", "My answer: {}",
)  # fmt: skip
HEDGES = (
    "Answer: {0}. Wait, that is wrong; it should be {1}.", "Answer: {0}. No, actually {1}.", "Answer: {0}, no, {1}", "Answer: {0} → {1}",
    "Answer: {0}. Correction: {1}.", "The answer is {0}. Hmm, on second thought it is {1}.", "Answer: {0}. Sorry, I meant {1}.",
    "Answer: not {0} but {1}", "Answer: {0}? No: {1}.", "The answer is not {0} but {1}.",
)  # fmt: skip
OPEN = (
    "Answer: {0} (or {1})", "Answer: {0} or {1}", "The answer is {0} or {1}.", r"\boxed{{{0}, {1}}}", r"\boxed{{{0} \text{{ or }} {1}}}",
    "Answer: {0}/{1}", "Answer: either {0} or {1}", "Answer: {0}, or maybe {1}", "选{0}或{1}", "Answer: {0} and {1}", "Answer: {0}, {1}",
    "Answer: {0}. But {1} is also possible.", "Answer: {0}; alternatively {1}",
)  # fmt: skip


def draw_options(rng: Random) -> tuple[dict[str, str], str, str]:
    """(options, the right letter, a wrong one)."""
    texts = rng.sample(rng.choice(OPTIONS), 4)
    right, wrong = rng.sample("ABCD", 2)
    return dict(zip("ABCD", texts, strict=True)), right, wrong


def choices(rng: Random) -> Iterator[Pair]:
    """Options by letter and by text, in many sentences."""
    options, right, wrong = draw_options(rng)
    for paid, letter in ((True, right), (False, wrong)):
        text = options[letter].strip("$")
        named = rng.choice([letter, letter, letter, f"{letter}. {text}", f"{letter}) {text}", f"{letter}: {text}"])
        form = rng.choice(NAMING)
        if named != letter:
            form = rng.choice(["Answer: {}", "**Answer: {}**", r"\boxed{{{}}}", "<answer>{}</answer>", "#### {}", "Final Answer: {}"])
        yield Pair(f"{reasoning(rng)}\n{form.format(named)}", right, paid, "choice", {"options": options})


def option_texts(rng: Random) -> Iterator[Pair]:
    """Options by their text alone, also of one character."""
    options, right, wrong = draw_options(rng)
    for paid, letter in ((True, right), (False, wrong)):
        form = rng.choice([r"\boxed{{{}}}", "Answer: {}", "<answer>{}</answer>", "**Answer:** {}"])
        yield Pair(f"{reasoning(rng)}\n{form.format(options[letter])}", right, paid, "choice", {"options": options})


def corrections(rng: Random) -> Iterator[Pair]:
    """A correction on the same line counts, a hedge is no answer."""
    options, right, wrong = draw_options(rng)
    form, hedge = rng.choice(HEDGES), rng.choice(OPEN)
    yield Pair(f"{reasoning(rng)}\n{form.format(wrong, right)}", right, True, "choice", {"options": options})
    yield Pair(f"{reasoning(rng)}\n{form.format(right, wrong)}", right, False, "choice", {"options": options})
    yield Pair(f"{reasoning(rng)}\n{hedge.format(right, wrong)}", right, False, "choice", {"options": options})
    yield Pair(f"{reasoning(rng)}\n{hedge.format(wrong, right)}", right, False, "choice", {"options": options})


def choice_boxes(rng: Random) -> Iterator[Pair]:
    """A formula in a box hides no later answer line."""
    options, right, wrong = draw_options(rng)
    formula = rng.choice([r"E \ll kT", "v = at", "x > 3", r"\lambda = h/p", "pV = nRT", "2x+1"])
    for paid, letter in ((True, right), (False, wrong)):
        line = rng.choice(["**Answer: {}**", "Answer: {}", "Final answer: {}", "The answer is {}.", "#### {}"]).format(letter)
        yield Pair(f"We use \\boxed{{{formula}}} here. {reasoning(rng)}\n\n{line}", right, paid, "choice", {"options": options})


def multi_choices(rng: Random) -> Iterator[Pair]:
    """Sets of options."""
    texts = rng.sample(rng.choice(OPTIONS[:2]), 4)
    options = dict(zip("ABCD", texts, strict=True))
    first, second = sorted(rng.sample("ABCD", 2))
    other = rng.choice([letter for letter in "ABCD" if letter not in (first, second)])
    reference, parameters = f"{first}, {second}", {"options": options}
    for sentence in (
        f"Both {first} and {second} are correct.", f"Answer: {second} and {first}", f"\\boxed{{{first}{second}}}", f"故选{first}{second}。",
        f"The correct options are {first} and {second}.", f"<answer>{first}, {second}</answer>", f"\\boxed{{\\text{{{second}, {first}}}}}",
        f"Answers: {first}, {second}", f"Options {first} and {second} are both true.",
    ):  # fmt: skip
        if rng.random() < 0.5:
            yield Pair(f"{reasoning(rng)}\n{sentence}", reference, True, "multi-choice", parameters)
            wrong = sentence.replace(second, "#").replace(first, second).replace("#", other)
            yield Pair(f"{reasoning(rng)}\n{wrong}", reference, False, "multi-choice", parameters)
    for sentence in (
        f"Neither {first} nor {second} is correct.", f"Answer: {first}", f"Answer: {first}, {second}, or {other}", f"\\boxed{{{first}{second}{other}}}",
        f"Answer: {first} or {second}",
    ):  # fmt: skip
        if rng.random() < 0.5:
            yield Pair(f"{reasoning(rng)}\n{sentence}", reference, False, "multi-choice", parameters)


# -- numeric, list, json, boolean


def numeric_spellings(rng: Random) -> Iterator[Pair]:
    """One-letter units, about, program notation, powers of ten."""
    value = Fraction(rng.randrange(11, 9999), rng.choice([1, 10, 100]))
    text, other = number(value), number(value + Fraction(1, 10))
    unit = rng.choice(["N", "J", "m", "s", "V", "W", "g", "kg", "m/s", "Pa", "mol", "K", "A"])
    power = rng.randrange(2, 9)
    forms = [
        "{} " + unit, r"{}\text{{ " + unit + "}}", r"\approx {}", r"\approx {}\text{{ " + unit + "}}", "about {}", "approximately {}",
        "x = {}", "~{}", r"{}\ \mathrm{{" + unit + "}}", r"+{}",
    ]  # fmt: skip
    for paid, shown in ((True, text), (False, other)):
        form = rng.choice(forms)
        yield Pair(f"{reasoning(rng)}\n\\boxed{{{form.format(shown)}}}", text, paid, "numeric")
        scientific = rng.choice(["{}*10**{}", r"{}\times 10^{{{}}}", "{}e{}", "{}*10^{}", r"{} \cdot 10^{}"])
        yield Pair(f"\\boxed{{{scientific.format(shown, power)}}}", number(value * 10**power), paid, "numeric")


def numeric_tolerances(rng: Random) -> Iterator[Pair]:
    """Within a relative tolerance of the reference, or beyond it."""
    value, tolerance = Fraction(rng.randrange(1000, 99999), rng.choice([1, 10, 100])), rng.choice(["0.01", "0.05", "0.001"])
    share = Fraction(tolerance)
    for factor, paid in ((Fraction(9, 10), True), (Fraction(-9, 10), True), (Fraction(12, 10), False), (Fraction(-12, 10), False)):
        near = value * (1 + share * factor)
        shown = number(Fraction(round(near * 10**6), 10**6))
        verifier = rng.choice(["numeric", "math"])
        yield Pair(f"\\boxed{{{shown}}}", number(value), paid, verifier, {"relative_tolerance": float(share)})


def lists(rng: Random) -> Iterator[Pair]:
    """Items in any order, or in order."""
    words = rng.sample(["ant", "bee", "cat", "dog", "eel", "fox", "gnu", "hen", "ibis", "jay"], rng.randrange(2, 5))
    mixed = rng.sample(words, len(words))
    joint = rng.choice([", ", "; "])
    reference = ", ".join(words)
    shapes = (lambda items: json.dumps(items), lambda items: joint.join(items), lambda items: "\n".join(f"- {item}" for item in items))
    shape = rng.choice(shapes)
    for ordered in (False, True):
        parameters = {"ordered": ordered}
        for items, paid in ((words, True), (mixed, not ordered or mixed == words), (words[:-1], False), ([*words, "zebu"], False)):
            yield Pair(f"<answer>{shape(items)}</answer>", reference, paid, "list", parameters)


def json_blocks(rng: Random) -> Iterator[Pair]:
    """The json block counts, whatever blocks stand before it."""
    value = {"name": rng.choice(["ada", "bob", "eve"]), "n": rng.randrange(1000), "tags": rng.sample(["x", "y", "z"], 2)}
    wrong = {**value, "n": value["n"] + 1}
    reference = json.dumps(value)
    before = rng.choice(["", "```python\nx = {}\n```\n", "```\nnotes\n```\n", "~~~bash\nls\n~~~\n", "First I read the text.\n"])
    for paid, answer in ((True, value), (False, wrong)):
        shown = json.dumps(dict(rng.sample(sorted(answer.items()), len(answer))), indent=rng.choice([None, 2]))
        yield Pair(f"{before}```json\n{shown}\n```", reference, paid, "json")
        yield Pair(f"<answer>{shown}</answer>", reference, paid, "json")
    yield Pair(f"```json\n{reference}\n```\n```json\n{json.dumps(wrong)}\n```", reference, False, "json")
    yield Pair(f"```json\n{reference[:-1]}\n```", reference, False, "json")


def booleans(rng: Random) -> Iterator[Pair]:
    right, wrong = rng.sample([("Yes", "True", "yes", "true"), ("No", "False", "no", "false")], 2)
    form = rng.choice(["Answer: {}", r"\boxed{{{}}}", r"\boxed{{\text{{{}}}}}", "<answer>{}</answer>", "**Answer:** {}.", "The answer is {}.", "Final answer: **{}**"])
    reference = rng.choice(right)
    yield Pair(f"{reasoning(rng)}\n{form.format(rng.choice(right))}", reference, True, "boolean")
    yield Pair(f"{reasoning(rng)}\n{form.format(rng.choice(wrong))}", reference, False, "boolean")
    yield Pair(f"{reasoning(rng)}\n{form.format('Yes or no')}", reference, False, "boolean")


# -- code


def programs(rng: Random) -> Iterator[Pair]:
    """Integers are compared as integers, and examples after the program are no program."""
    n, m = rng.randrange(10**6, 10**17), rng.randrange(2, 50)
    tests = json.dumps([{"call": "f", "args": [x], "expected": n + m * x} for x in (0, 1, rng.randrange(2, 99))])
    body = rng.choice([f"return {n} + {m} * x", f"total = {n}\n    for _ in range({m}):\n        total += x\n    return total"])
    wrong = rng.choice([f"return {n + 1} + {m} * x", f"return {n} + {m + 1} * x", f"return {m} * x + {n} - 1", f"return str({n} + {m} * x)"])
    after = rng.choice(["", "\nExample:\n```python\nprint(f(1))\n```", "\nOutput:\n```text\n3\n```", "\n```\n>>> f(0)\n```", "\nUsage:\n```python\nx = f(2)\nprint(x)\n```"])
    before = rng.choice(["", "```bash\npip install numpy\n```\n", "Here is the program.\n"])
    for paid, text in ((True, body), (False, wrong)):
        yield Pair(f"{before}```python\ndef f(x):\n    {text}\n```{after}", tests, paid, "code")


KINDS: dict[str, Kind] = {
    kind.__name__: kind
    for kind in (
        *(headings, marks, languages, units_of_languages, later_lines, several_answers, thinking, prompt_examples),
        *(choices, option_texts, corrections, choice_boxes, multi_choices, numeric_spellings, numeric_tolerances),
        *(lists, json_blocks, booleans, programs),
    )
}
