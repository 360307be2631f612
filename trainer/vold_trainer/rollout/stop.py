"""What ends a completion besides the student's EOS: ids, and texts that it comes to contain.

The token that completes a text is the completion's last one, and the text stays in it, so that what is trained on, what
the teacher scores and what the verifier reads are the same.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from vold_trainer.errors import UsageError

TOKENS_PER_CHARACTER = 4
"""A character of UTF-8 has at most four bytes, and a token of bytes at least one."""


@dataclass(frozen=True)
class Stop:
    """ids: of tokens. texts: none of them empty."""

    ids: tuple[int, ...] = ()
    texts: tuple[str, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.ids or self.texts)


NO_STOP = Stop()


def read_stop(stop: Sequence[int | str], tokenizer: Any, vocab_size: int, key: str) -> Stop:
    """The ids and the texts of a config's list. key: of the list, for errors.

    Raises UsageError for an id outside the vocabulary, and for the text of a special token, which no text shows.
    """
    ids = tuple(item for item in stop if isinstance(item, int))
    texts = tuple(item for item in stop if isinstance(item, str))
    for token in ids:
        if not 0 <= token < vocab_size:
            raise UsageError(f"{key}: {token} is no id of the student, which has those from 0 to {vocab_size - 1}")
    special = special_tokens(tokenizer)
    for text in texts:
        if hidden := next((token for token in special if token in text), None):
            raise UsageError(
                f"{key}: {text!r} has the special token {hidden!r}, which the text of a completion does not show: give "
                f"its id, {special[hidden]}"
            )
    return Stop(ids, texts)


def special_tokens(tokenizer: Any) -> dict[str, int]:
    """The tokens that a decoded text leaves out, with their ids."""
    added = {token.content: index for index, token in tokenizer.added_tokens_decoder.items() if token.special}
    return dict(zip(tokenizer.all_special_tokens, tokenizer.all_special_ids, strict=True)) | added


class TextStops:
    """Finds the completions whose last token completes one of the texts."""

    def __init__(self, texts: Sequence[str], tokenizer: Any) -> None:
        self.texts = tuple(texts)
        self.tokenizer = tokenizer
        self.special_ids = frozenset(special_tokens(tokenizer).values())
        self.window = TOKENS_PER_CHARACTER * (max(map(len, self.texts), default=0) + 1)

    def ended(self, completions: Sequence[Sequence[int]]) -> list[bool]:
        """For each completion, whether it contains one of the texts. Only its last tokens are read: to be called at
        every position.
        """
        tails = []
        for ids in completions:
            # Twice the window: special tokens among them have no text, and are rarely the half.
            tail = [token for token in ids[-2 * self.window :] if token not in self.special_ids]
            tails.append(tail[-self.window :])
        return [any(text in tail for text in self.texts) for tail in self.tokenizer.batch_decode(tails)]
