"""Turns a stream of tokens into text: whole characters only, up to a stop text."""

from collections.abc import Sequence

from vold_teacher.tokenizer import Tokenizer
from vold_teacher.types import GenerateChunk

REPLACEMENT = "\ufffd"
"""The character that a tokenizer writes for bytes that do not form a character, or not yet."""


class Detokenizer:
    """Decodes token by token. The pieces of `push` and `flush` joined are the text of all ids; no piece ends within a
    character.

    Decodes a window that starts one piece before the new tokens, because the text of a token may depend on the token
    before it (a leading space, a character of several tokens).
    """

    def __init__(self, tokenizer: Tokenizer, *, special: bool = False) -> None:
        self._tokenizer = tokenizer
        self._special = special
        self._window: list[int] = []
        self._emitted = 0  # tokens of the window whose text was returned

    def push(self, index: int) -> str:
        """The text that this token completes; "" while a character is incomplete."""
        self._window.append(index)
        piece = self._pending_text()
        if not piece or piece.endswith(REPLACEMENT):
            return ""
        self._window = self._window[self._emitted :]
        self._emitted = len(self._window)
        return piece

    def flush(self) -> str:
        """The rest: the end of a text that stops within a character."""
        piece = self._pending_text()
        self._emitted = len(self._window)
        return piece

    def _pending_text(self) -> str:
        emitted = self._tokenizer.decode(self._window[: self._emitted], special=self._special)
        return self._tokenizer.decode(self._window, special=self._special)[len(emitted) :]


class StopTexts:
    """Ends a text before its first stop text. Holds back text that may be the start of a stop text."""

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = stops
        self._longest = max(map(len, stops), default=0)
        self._held = ""

    def push(self, piece: str) -> tuple[str, str | None]:
        """The text that is certain, and the stop text that ended it, or None."""
        self._held += piece
        matches = [(start, stop) for stop in self._stops if (start := self._held.find(stop)) >= 0]
        if matches:
            start, stop = min(matches, key=lambda match: match[0])
            return self._held[:start], stop
        for size in range(min(self._longest - 1, len(self._held)), 0, -1):
            if any(stop.startswith(self._held[-size:]) for stop in self._stops):
                break
        else:
            size = 0
        certain, self._held = self._held[: len(self._held) - size], self._held[len(self._held) - size :]
        return certain, None

    def flush(self) -> str:
        """The text held back, when the text ends without a stop text."""
        held, self._held = self._held, ""
        return held


class StopReader:
    """Ends completions at the first of their stop texts. Of each it keeps the text up to there."""

    def __init__(self, tokenizer: Tokenizer, stops: Sequence[str]) -> None:
        self._tokenizer = tokenizer
        self._stops = stops
        self._readers: dict[tuple[int, int], tuple[Detokenizer, StopTexts]] = {}
        self._texts: dict[tuple[int, int], str] = {}

    def cut(self, chunk: GenerateChunk) -> int | None:
        """How many tokens of a chunk belong to its completion: up to the token in which a stop text ends. None if none
        does.
        """
        key = (chunk.prompt, chunk.index)
        if key not in self._readers:
            self._readers[key] = Detokenizer(self._tokenizer), StopTexts(self._stops)
            self._texts[key] = ""
        detokenizer, stops = self._readers[key]
        for count, index in enumerate(chunk.ids.tolist(), 1):
            text, stop = stops.push(detokenizer.push(index))
            self._texts[key] += text
            if stop is not None:
                return count
        if chunk.finish_reason is not None:
            text, stop = stops.push(detokenizer.flush())
            self._texts[key] += text if stop is not None else text + stops.flush()
        return None

    def text(self, prompt: int, index: int) -> str:
        """The text of a finished completion, which is then forgotten."""
        self._readers.pop((prompt, index), None)
        return self._texts.pop((prompt, index), "")
