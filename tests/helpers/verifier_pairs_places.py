"""Pairs about where an answer stands, and in which language. See verifier_pairs.py."""

from collections.abc import Iterator
from fractions import Fraction
from random import Random

from verifier_pairs import Kind, Pair
from verifier_pairs_numbers import number

WORDS = (
    "the speed is constant",
    "we add both sides",
    "the triangle is right-angled",
    "each side grows",
    "there are two cases",
    "the sum telescopes",
    "half of them remain",
    "the tank is full",
    "we substitute back",
    "the order does not matter",
)


def reasoning(rng: Random) -> str:
    """Sentences with other numbers in them."""
    return " ".join(
        f"{rng.choice(WORDS).capitalize()}, so we get {rng.randrange(2, 99)}." for _ in range(rng.randrange(1, 4))
    )


def answers(rng: Random) -> tuple[str, str]:
    """(a right answer, a wrong one)."""
    value = Fraction(rng.randrange(-400, 4000), rng.choice([1, 1, 1, 2, 5, 7]))
    return number(value), number(value + rng.choice([1, -1, 10]))


def headings(rng: Random) -> Iterator[Pair]:
    """An answer below its heading."""
    right, wrong = answers(rng)
    heading = rng.choice(
        [
            "**Final Answer:**",
            "### Answer",
            "## Final Answer",
            "**Answer**",
            "Final answer:",
            "### Final Answer:",
            "**Answer:**",
            "# Answer",
            "The final answer is:",
            "Hence, the answer is",
            "**The final answer is:**",
            "Answer\n------",
        ]
    )
    for paid, answer in ((True, right), (False, wrong)):
        shown = rng.choice(
            [f"**{answer}**", f"${answer}$", f"$${answer}$$", answer, rf"\[{answer}\]", rf"\({answer}\)"]
        )
        gap = rng.choice(["\n", "\n\n"])
        yield Pair(f"{reasoning(rng)}\n\n{heading}{gap}{shown}", right, paid)


def marks(rng: Random) -> Iterator[Pair]:
    """Marks before and after the answer."""
    right, wrong = answers(rng)
    for paid, answer in ((True, right), (False, wrong)):
        shown = rng.choice(
            [
                f"✅ Final Answer: **{answer}**",
                f"**Final Answer: {answer}**",
                f"#### {answer}<|im_end|>",
                f"#### {answer}",
                f"Final Answer: The final answer is ${answer}$. I hope it is correct.",
                f"<answer>The answer is {answer}.</answer>",
                f"<answer>{answer}</answer>",
                f"<answer>\n{answer}\n</answer><|im_end|>",
                rf"\framebox{{{answer}}}",
                rf"\fbox{{{answer}}}",
                f"<|begin_of_box|>{answer}<|end_of_box|>",
                f"The answer is: ${answer}$",
                f"**Answer:** ${answer}$",
                f"👉 Answer: {answer}",
                rf"<answer> \boxed{{{answer}}} </answer>",
                f"Answer: {answer}.",
                f"> **Answer:** {answer}",
                f"- Answer: {answer}",
                rf"$\boxed{{{answer}}}$<|endoftext|>",
                rf"The answer is $\boxed{{{answer}}}$. </s>",
                f"【答案】{answer}",
                f"*Answer:* {answer}",
            ]
        )
        yield Pair(f"{reasoning(rng)}\n{shown}", right, paid)
    digit = rng.randrange(2, 9)
    yield Pair(rf"{reasoning(rng)} $\boxed {digit}$", str(digit), True)
    yield Pair(rf"{reasoning(rng)} $\boxed{digit}$", str(digit + 1), False)


LANGUAGES = (
    "所以答案是{}。",
    "答案：{}",
    "答案是 {}",
    "故答案为{}",
    "故答案为：{}。",
    "最终答案：{}",
    "因此，最终答案是{}。",
    "答: {}",
    "La respuesta es {}.",
    "La respuesta final es {}.",
    "Respuesta: {}",
    "La réponse est {}.",
    "Réponse : {}",
    "Réponse finale : {}",
    "Die Antwort ist {}.",
    "Antwort: {}",
    "Die Antwort lautet {}.",
    "La risposta è {}.",
    "Risposta: {}",
    "A resposta é {}.",
    "Resposta: {}",
    "Ответ: {}",
    "Ответ: {}.",
    "정답은 {}입니다.",
    "정답: {}",
    "답: {}",
    "答えは{}です。",
    "答え：{}",
    "الإجابة: {}",
    "الجواب: {}",
    "उत्तर: {}",
    "Đáp án: {}",
    "Cevap: {}",
    "Odpowiedź: {}",
    "Antwoord: {}",
    "Jawaban: {}",
    "คำตอบ: {}",
    "Svar: {}",
    "Vastaus: {}",
    "Відповідь: {}",
)


def languages(rng: Random) -> Iterator[Pair]:
    """Statements in other languages."""
    right, wrong = (str(value) for value in rng.sample(range(2, 5000), 2))
    form = rng.choice(LANGUAGES)
    yield Pair(f"{reasoning(rng)}\n{form.format(right)}", right, True)
    yield Pair(f"{reasoning(rng)}\n{form.format(wrong)}", right, False)


FOREIGN_UNITS = (
    ("厘米", "cm"),
    ("米", "m"),
    ("千克", "kg"),
    ("元", ""),
    ("个", ""),
    ("人", ""),
    ("см", "cm"),
    ("км", "km"),
    ("кг", "kg"),
    ("小时", "h"),
    ("分钟", "min"),
)


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
    yield Pair(
        rf"<think>{reasoning(rng)} \boxed{{{right}}}</think>" + "\nI am done with this task now.\nThank you.",
        right,
        False,
    )
    yield Pair(rf"<think>{reasoning(rng)} \boxed{{{right}}}", right, False)
    yield Pair(rf"{reasoning(rng)} \boxed{{{right}", right, False)


def prompt_examples(rng: Random) -> Iterator[Pair]:
    """A line that equals an example line of the prompt, and copies of the prompt."""
    right, wrong = (str(value) for value in rng.sample(range(2, 5000), 2))
    example = f"#### The final answer: {right}"
    prompt = f"Q: How many apples are left in the box?\n{example}\n\nQ: How many pears are there, if two are eaten?"
    yield Pair(f"Two pears are eaten, so that we subtract two from the rest.\n{example}", right, True, prompt=prompt)
    yield Pair(
        f"Two pears are eaten, so that we subtract two.\n#### The final answer: {wrong}", right, False, prompt=prompt
    )
    yield Pair(prompt, right, False, prompt=prompt)
    yield Pair(example, right, False, prompt=prompt)
    n, m = rng.sample(range(11, 80), 2)
    question = rf"What is the value of ${n}^2+{m}x$ at x = 1? Put it in a box."
    yield Pair(rf"\boxed{{{n}^2+{m}}}", str(n * n + m), True, prompt=question)
    question = rf"What is the value of ${n}^2+{m}$? Put your final answer in a box."
    yield Pair(rf"\boxed{{{n}^2+{m}}}", str(n * n + m), False, prompt=question)
    yield Pair(rf"\boxed{{{n * n + m}}}", str(n * n + m), True, prompt=question)


KINDS: dict[str, Kind] = {
    kind.__name__: kind
    for kind in (
        headings,
        marks,
        languages,
        units_of_languages,
        later_lines,
        several_answers,
        thinking,
        prompt_examples,
    )
}
