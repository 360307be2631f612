"""Texts that a tokenizer reads as one token: control tokens, and the marks of images, turns, thoughts and tools.

What a row of the trainer, or a message of the teacher's caller, says never becomes such a token: `<|im_end|>` in a
question would end the user's turn, and `<|image_pad|>` make the place of an image. A text that holds one goes another
way: before the template is filled in, each mark is
replaced by a stand-in, a character of private use, which a copy of the tokenizer reads as a token of its own; after
tokenizing, the stand-ins become the ids of the mark's letters. A text without a mark is tokenized as ever.

In completions to learn, the marks of thoughts and tools are tokens: they are what a model is to write.
"""

import functools
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple, TypeVar

from tokenizers import AddedToken, Tokenizer

FIRST, COUNT = 0x10F000, 64
"""The stand-ins: so many code points of Plane 16, for private use. A text with more different marks is refused."""

_STAND_INS = f"[{chr(FIRST)}-{chr(FIRST + COUNT - 1)}]"
THOUGHTS_AND_TOOLS = re.compile(r"[<\[]/?\|?(?:think|thinking|thought|reasoning|tool\w*|function\w*)\|?[>\]]", re.I)
_MEDIA = re.compile(r"\w*(?:image|video|audio|vision|boi|eoi)\w*_token")
_TURNS = re.compile(r"\W*(?:\w*_)?turn\W*", re.I)
_NAMES = ("role", "type")
"""Keys of a message whose values are names, which templates compare, unless they have other characters than names."""

T = TypeVar("T")


class Prompt(NamedTuple):
    """text: of a prompt, with stand-ins for the marks that the texts of its row hold. marks: these, by stand-in."""

    text: str
    marks: Sequence[str]


class TooManyMarksError(ValueError):
    """A text has more different marks than there are stand-ins."""


class Marks:
    """The marks of a tokenizer. media: further texts that stand for images and video."""

    def __init__(self, tokenizer: Tokenizer, media: Iterable[str] = ()) -> None:
        added = tokenizer.get_added_tokens_decoder().values()
        self.control = {token.content for token in added if token.special or _TURNS.fullmatch(token.content)}
        self.control |= {token.content for token in added}.intersection(media)
        self.others = {token.content for token in added if THOUGHTS_AND_TOOLS.fullmatch(token.content)} - self.control
        self._in_completions = _pattern(self.control)
        self._in_prompts = _pattern(self.control | self.others)
        self._tokenizer = tokenizer
        self._letters: dict[str, list[int]] = {}

    def shield(self, messages: Sequence[Mapping[str, Any]]) -> tuple[Sequence[Mapping[str, Any]], list[str]]:
        """(the messages with stand-ins for the marks in their texts, the marks by stand-in). Turns of the assistant
        keep the marks of thoughts and tools, as templates look for them there.

        Raises TooManyMarksError.
        """
        shielded, _, found = self.shield_all(messages, {})
        return shielded, found

    def shield_all(
        self, messages: Sequence[Mapping[str, Any]], variables: Mapping[str, Any]
    ) -> tuple[Sequence[Mapping[str, Any]], Mapping[str, Any], list[str]]:
        """As `shield`, for messages and further variables of their template, which has the same stand-ins."""
        found: dict[str, str] = {}
        shielded = []
        for message in messages:
            pattern = self._in_completions if message["role"] == "assistant" else self._in_prompts
            shielded.append(_replace(_joined(message, pattern), pattern, found))
        others = _replace(variables, self._in_prompts, found)
        return (shielded, others, list(found)) if found else (messages, variables, [])

    def spelled_in(self, text: str) -> bool:
        """Whether a text spells a mark, of those that the turns of the assistant keep too."""
        return self._in_prompts.search(text) is not None

    def ids(self, prompts: Sequence[Prompt]) -> list[list[int]]:
        """The token ids of each prompt, without those that a tokenizer adds."""
        encodings = self._reader.encode_batch([prompt.text for prompt in prompts], add_special_tokens=False)
        return [
            self.expand(encoding.ids, prompt.marks, self._reader) if prompt.marks else encoding.ids
            for prompt, encoding in zip(prompts, encodings, strict=True)
        ]

    def completion_ids(self, text: str) -> list[int]:
        """The token ids of a completion to learn, in which only control tokens are text. Raises TooManyMarksError."""
        found: dict[str, str] = {}
        return self.ids([Prompt(_replace(text, self._in_completions, found), list(found))])[0]

    def expand(self, ids: Sequence[int], found: Sequence[str], tokenizer: Tokenizer) -> list[int]:
        """The ids with those of the marks' letters in place of the stand-ins'. tokenizer: has made the ids."""
        letters = {tokenizer.token_to_id(chr(FIRST + index)): self.letters(mark) for index, mark in enumerate(found)}
        return [own for token in ids for own in letters.get(token, (token,))]

    def letters(self, mark: str) -> list[int]:
        """The token ids of a mark as any other text."""
        if mark not in self._letters:
            ids = _encode_after_newline(self._without_marks, mark)
            if self._tokenizer.token_to_id(mark) in ids:  # the vocabulary itself has it as one piece
                ids = [token for letter in mark for token in _encode_after_newline(self._without_marks, letter)]
            self._letters[mark] = ids
        return self._letters[mark]

    @functools.cached_property
    def _reader(self) -> Tokenizer:
        """A copy that reads stand-ins: transformers sets the padding of the tokenizer itself with each of its calls."""
        reader = with_stand_ins(Tokenizer.from_str(self._tokenizer.to_str()))
        reader.no_padding()
        reader.no_truncation()
        return reader

    @functools.cached_property
    def _without_marks(self) -> Tokenizer:
        parts = json.loads(self._tokenizer.to_str())
        parts |= {"added_tokens": [], "post_processor": None, "padding": None, "truncation": None}
        return Tokenizer.from_str(json.dumps(parts))


def reveal(prompt: Prompt) -> str:
    """The text of a prompt with the marks themselves."""
    return prompt.text.translate({FIRST + index: mark for index, mark in enumerate(prompt.marks)})


def with_stand_ins(tokenizer: Tokenizer) -> Tokenizer:
    """The tokenizer, which now reads each stand-in as a token of its own."""
    tokenizer.add_special_tokens([AddedToken(chr(FIRST + index), normalized=False) for index in range(COUNT)])
    return tokenizer


def media_marks(*owners: Any) -> set[str]:
    """The texts that stand for images and video in a processor or a tokenizer of transformers."""
    return {
        value
        for owner in owners
        for name, value in vars(owner).items()
        if _MEDIA.fullmatch(name) and isinstance(value, str)
    }


def _pattern(marks: Iterable[str]) -> re.Pattern[str]:
    """Finds the longest mark, or else a stand-in, at the first place that has one.

    Marks share their beginnings: some vocabularies have thousands, and to try each at each "<" of a text takes long.
    """
    tree: dict[str, Any] = {}
    for mark in filter(None, marks):
        branch = tree
        for letter in mark:
            branch = branch.setdefault(letter, {})
        branch[""] = {}
    return re.compile("|".join([*_alternatives(tree), _STAND_INS]))


def _alternatives(tree: Mapping[str, Any]) -> list[str]:
    """A regular expression of each branch of a tree of letters, in which "" marks the end of a mark."""
    found = []
    for letter, below in tree.items():
        path = letter
        while len(below) == 1 and (only := next(iter(below))):  # without a branch or an end
            path, below = path + only, below[only]
        rest = "|".join(_alternatives(below))
        if letter:
            found.append(re.escape(path) + (f"(?:{rest})" if rest else "") + ("?" if rest and "" in below else ""))
    return found


def _joined(message: Mapping[str, Any], pattern: re.Pattern[str]) -> Mapping[str, Any]:
    """The message with neighbouring parts of text as one, if a mark runs across them."""
    content = message["content"]
    if isinstance(content, str):
        return message
    parts: list[Mapping[str, Any]] = []
    for part in content:
        before = parts[-1]["text"] if parts and parts[-1]["type"] == "text" == part["type"] else None
        if before is not None and _crosses(pattern, before, part["text"]):
            parts[-1] = {**part, "text": before + part["text"]}
        else:
            parts.append(part)
    return {**message, "content": parts}


def _crosses(pattern: re.Pattern[str], before: str, after: str) -> bool:
    return any(found.start() < len(before) < found.end() for found in pattern.finditer(before + after))


def _replace(value: T, pattern: re.Pattern[str], found: dict[str, str]) -> T:
    """The value with stand-ins for the marks in all of its texts. found: the stand-ins so far, by mark."""

    def stand_in(match: re.Match[str]) -> str:
        mark = match[0]
        if mark not in found:
            if len(found) == COUNT:
                raise TooManyMarksError(
                    f"its texts spell more than {COUNT} different control tokens, such as {mark!r}: shorten them"
                )
            found[mark] = chr(FIRST + len(found))
        return found[mark]

    def is_name(key: Any, value: Any) -> bool:
        return key in _NAMES and isinstance(value, str) and value.isidentifier()

    def walk(item: Any) -> Any:
        if isinstance(item, str):
            return pattern.sub(stand_in, item)
        if isinstance(item, Mapping):
            return {walk(key): text if is_name(key, text) else walk(text) for key, text in item.items()}
        return [walk(each) for each in item] if isinstance(item, list | tuple) else item

    result: T = walk(value)
    return result


def _encode_after_newline(tokenizer: Tokenizer, text: str) -> list[int]:
    """The ids of a text within another: some tokenizers put a space before the first word of all."""
    before = tokenizer.encode("\n", add_special_tokens=False).ids
    ids: list[int] = tokenizer.encode("\n" + text, add_special_tokens=False).ids
    return ids[len(before) :] if ids[: len(before)] == before else tokenizer.encode(text, add_special_tokens=False).ids
