"""Text out of tokens that come one by one: whole characters only, and up to a stop text."""

from collections.abc import Sequence

from vold_teacher.tokenizer import Tokenizer

PART = "\ufffd"
"""What a tokenizer writes for bytes that are no character, or not yet one."""


class Detokenizer:
    """Joined, the pieces of `push` and `flush` are the text of all ids, and each ends where a character does.

    Decodes a window that begins a piece before the new tokens, because what a token reads as may depend on the one
    before it (a leading space, a character in several tokens).
    """

    def __init__(self, tokenizer: Tokenizer, *, special: bool = False) -> None:
        self._tokenizer = tokenizer
        self._special = special
        self._window: list[int] = []
        self._given = 0  # of the window, tokens whose text is out

    def push(self, index: int) -> str:
        """The text that this token completes; "" while a character lacks some of its tokens."""
        self._window.append(index)
        piece = self._rest()
        if not piece or piece.endswith(PART):
            return ""
        self._window = self._window[self._given :]
        self._given = len(self._window)
        return piece

    def flush(self) -> str:
        """What was held back: the end of a text that stops within a character."""
        piece = self._rest()
        self._given = len(self._window)
        return piece

    def _rest(self) -> str:
        given = self._tokenizer.decode(self._window[: self._given], special=self._special)
        return self._tokenizer.decode(self._window, special=self._special)[len(given) :]


class StopTexts:
    """Ends a text before the first of its stop texts, and holds back what may be the beginning of one."""

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = stops
        self._longest = max(map(len, stops), default=0)
        self._held = ""

    def push(self, piece: str) -> tuple[str, str | None]:
        """The text that is certain now, and the stop text that ended it, if one did."""
        self._held += piece
        found = [(at, stop) for stop in self._stops if (at := self._held.find(stop)) >= 0]
        if found:
            at, stop = min(found, key=lambda place: place[0])
            return self._held[:at], stop
        for size in range(min(self._longest - 1, len(self._held)), 0, -1):
            if any(stop.startswith(self._held[-size:]) for stop in self._stops):
                break
        else:
            size = 0
        certain, self._held = self._held[: len(self._held) - size], self._held[len(self._held) - size :]
        return certain, None

    def flush(self) -> str:
        """What was held back, where the text ends without a stop text."""
        held, self._held = self._held, ""
        return held
