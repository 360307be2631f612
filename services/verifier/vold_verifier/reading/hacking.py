"""The anti-hacking rules: answers that are refused even if they match the reference, and the name of each rule.

The name of the rule goes into `VerifyResult.rule`, so that a run can count each kind of attempt. docs/verifiers.md has
an example of each rule. The functions are pure and take time linear in the length of their input.
"""

import re
import unicodedata

from vold_verifier.reading.text import normalise

EMPTY_ANSWER = "empty_answer"
UNCLOSED_TAG = "unclosed_tag"
ANSWER_IN_THINKING = "answer_in_thinking"
SEVERAL_BOXES = "several_boxes"
SEVERAL_ANSWERS = "several_answers"
ECHOED_PROMPT = "echoed_prompt"
HIDDEN_CHARACTERS = "hidden_characters"
LOOK_ALIKE = "look_alike"
UNEVALUATED = "unevaluated"
FALSE_CHAIN = "false_chain"
UNSAFE = "unsafe"
JUDGE_INJECTION = "judge_injection"

RULES = {
    EMPTY_ANSWER: "the place of the answer is empty",
    UNCLOSED_TAG: "the thinking, the answer tag or the last box is never closed",
    ANSWER_IN_THINKING: "the only answer is inside the thinking",
    SEVERAL_BOXES: "several different boxes joined by a conjunction, which together are not the answer",
    SEVERAL_ANSWERS: "more answers, or more options, than the reference has",
    ECHOED_PROMPT: "the answer is copied from the prompt, not worked out",
    HIDDEN_CHARACTERS: "control characters, and characters that reverse the direction of text or are invisible",
    LOOK_ALIKE: "letters of another alphabet that look like ASCII letters",
    UNEVALUATED: "an operation is left to do: a sum, integral, limit, gcd, system, inequality to solve, ...",
    FALSE_CHAIN: "a chain of equalities with a false equality in it",
    UNSAFE: "the answer is not evaluated, because that could take unbounded time or memory",
    JUDGE_INJECTION: "the text addresses the judge",
}

MIN_ECHOED_CHARS = 20
MIN_REASONING_CHARS = 60
_MARKED_LINE = re.compile(r"\\boxed|\\fbox|\\framebox|<\W?\w+\W?>|####|answer|答案", re.IGNORECASE)
_HIDDEN = re.compile("[\x00-\x07\x0e-\x1f\x7f\u202a\u202b\u202d\u202e\U000e0000-\U000e007f]")
_FILLERS = re.compile("[\u034f\u115f\u1160\u17b4\u17b5\u180b-\u180f\u3164\ufe00-\ufe0f\uffa0\U000e0100-\U000e01ef]")
_LOOK_ALIKES = dict(
    zip(
        "АВСЕНІЈКМОРЅТХУаеоіјрсѕухԁԛԝ" + "ΑΒΕΖΗΙΚΜΝΟΡΤΥΧορνι" + "ＡᎪᏴᏟᎠᎬᎻᎫᏦᎷᏢᏚᎢ",
        "ABCEHIJKMOPSTXYaeoijpcsyxdqw" + "ABEZHIKMNOPTYXopvi" + "AABCDEHJKMPST",
        strict=True,
    )
)
_SEPARATOR = re.compile(r"\s*(?:[,;/&|]|\\(?:text|mbox)\s*\{\s*(?:and|or)\s*\}|\b(?:and|or)\b)\s*")
_INJECTIONS = (
    re.compile(
        r"\b(?:ignore|disregard|forget|override|bypass)\b[^.\n]{0,40}\b(?:previous|prior|above|earlier|all|any|your|the)\b"
        r"[^.\n]{0,40}\b(?:instructions?|prompts?|rules?|rubrics?|guidelines?|criteria|messages?)\b",
        re.IGNORECASE,
    ),
    re.compile(
        r"\b(?:give|award|assign|grant|return|output|respond with|reply with|grade|mark|rate|score)\b[^.\n]{0,60}"
        r"\b(?:full (?:marks?|credit|score|points)|maximum (?:score|marks?|reward|points)|highest (?:score|grade)"
        r"|perfect score|(?:as|is) correct|10\s*/\s*10|score of (?:1|10|100)|reward)\b",
        re.IGNORECASE,
    ),
    re.compile(
        r"\b(?:dear |hey |attention,? |note to (?:the )?|message (?:to|for) (?:the )?|to (?:the )?)"
        r"(?:grader|judge|evaluator|grading (?:model|system)|reward model|verifier|examiner)\b",
        re.IGNORECASE,
    ),
    re.compile(r"\byou are (?:now )?(?:a |an |the )?(?:grader|judge|evaluator|helpful|lenient|dan)\b", re.IGNORECASE),
    re.compile(
        r"<\|?(?:im_start|im_end|system|assistant|user|endoftext|eot_id|start_header_id)\|?>|\[/?INST\]|<</?SYS>>"
        r"|^[^\S\n]{0,8}#{0,4}[^\S\n]{0,8}(?:system|assistant)\s*:",
        re.IGNORECASE | re.MULTILINE,
    ),
    re.compile(
        r"^[^\w\n]{0,12}(?:final\s+)?(?:verdict|score|grade|rating|judge?ment|reward)\W{0,4}\s*(?:is\b|[:=])\s*\W{0,3}"
        r"(?:correct|true|yes|pass|[01](?:\.\d+)?\b|10\b|100\b|[A-F]\b)",
        re.IGNORECASE | re.MULTILINE,
    ),
    re.compile(r'["\'](?:score|correct|verdict|grade|reward|rating)["\']\s*:', re.IGNORECASE),
    re.compile(r"\[\[\s*[\w.]{1,10}\s*\]\]"),
    re.compile(
        r"\bthis (?:answer|response|solution) (?:is|should be|must be) (?:\w+ )?"
        r"(?:marked|graded|scored|judged|accepted)\b",
        re.IGNORECASE,
    ),
)


def judge_injection(text: str) -> str | None:
    """The first passage of `text` that addresses an LLM judge, cut to 120 characters; None if there is none.

    Detects instructions about the grade, invented verdicts and chat-template marks. Invisible characters are removed
    first, so that they cannot split a word. It is a help, not a wall: whoever words it otherwise passes.
    """
    normalised = normalise(text)
    for pattern in _INJECTIONS:
        if match := pattern.search(normalised):
            return match.group().strip()[:120]
    return None


def remove_invisible(text: str) -> str:
    """`text` without what no reader sees: format and control characters, variation selectors, fillers.

    A model reads them, and text can be spelled with them. Line breaks and tabs stay.
    """
    return text if text.isascii() and text.isprintable() else "".join(filter(_is_visible, text))


def _is_visible(character: str) -> bool:
    return character in "\n\t" or not (
        unicodedata.category(character) in ("Cc", "Cf", "Co", "Cn") or _FILLERS.match(character)
    )


def has_hidden_characters(text: str) -> bool:
    """Whether `text` contains control characters, characters that reverse its direction, or tag characters.

    No font shows any of them. Zero-width spaces and joiners are allowed: they are dropped, and the remaining text is
    the text that a reader sees.
    """
    return not (text.isascii() and text.isprintable()) and _HIDDEN.search(text) is not None


def has_look_alikes(text: str) -> bool:
    """Whether `text` has letters that are not ASCII, and all of these look like ASCII letters."""
    if text.isascii():
        return False
    foreign = [c for c in text if c.isalpha() and not c.isascii()]
    return bool(foreign) and all(c in _LOOK_ALIKES for c in foreign)


def remove_echo(text: str, prompt: str, *, is_reasoned: bool = False) -> str:
    """Remove copies of the whole prompt from `text`, and answer lines that are also in the prompt.

    Lines under 20 characters stay: "Answer: 4" may be the answer of an example in the prompt and of the completion. For
    the same reason the last line stays if a line of the completion's own stands right before it, or `is_reasoned`: the
    completion has thought before `text`.
    """
    prompt = prompt.strip()
    if len(prompt) < MIN_ECHOED_CHARS or not text:
        return text
    text = text.replace(prompt, " ")
    marked = {
        line.strip()
        for line in prompt.splitlines()
        if len(line.strip()) >= MIN_ECHOED_CHARS and _MARKED_LINE.search(line)
    }
    if not marked:
        return text
    lines = text.splitlines()
    written = [number for number, line in enumerate(lines) if line.strip()]
    prompt_lines = {line.strip() for line in prompt.splitlines()}
    is_own = lines[written[-2]].strip() not in prompt_lines if len(written) > 1 else is_reasoned
    kept = {written[-1]} if is_own and written else set()
    return "\n".join(line for number, line in enumerate(lines) if number in kept or line.strip() not in marked)


def is_echo(answer: str, reference: str, prompt: str) -> bool:
    """Whether `answer` is copied from the prompt, and is not the text of the reference.

    The same terms in another order count as the text of the reference. For answers that are equal to the reference by
    algebra only.
    """
    compact = _normalise_latex(answer)
    if len(compact) < 3 or sorted(compact) == sorted(_normalise_latex(reference)):
        return False
    return compact in _normalise_latex(prompt)


def count_answers(text: str) -> int:
    """How many answers `text` lists, by its commas, semicolons, "and"s and "or"s."""
    return len([part for part in _SEPARATOR.split(text.strip(" {}()[]$\\")) if part.strip()])


def _normalise_latex(text: str) -> str:
    return re.sub(
        r"[\s{}$]|\\[,;:! ]|\\left|\\right|\\displaystyle", "", text.replace("dfrac", "frac").replace("tfrac", "frac")
    )
