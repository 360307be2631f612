"""What a service says about the scores, verdicts and traces that it did not give: its own sentences, a few for each
reason, beside the counts.

A count by class says that something is missing; the service's sentence says which field, which value and what to do.
The sentences are bounded in number and in length, because a step may lose thousands of scores. They are plain text:
whoever prints them with markup escapes them, as a sentence may quote a prompt.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field

MAX_SENTENCES = 2
"""Different sentences that are kept for each reason."""
MAX_CHARS = 300
"""Characters of a sentence; of a row's id a quarter of it."""


_INDEX = re.compile(r"\b(?:items|completions|prompts)\[\d+\]\.(?=[a-z])")


def without_index(text: str) -> str:
    """The text without the index of a row in its request, of which whoever has the row knows nothing."""
    return _INDEX.sub("", text)


def sentence(error: object) -> str:
    """The text of an error in one line of at most MAX_CHARS characters."""
    return _shorten(without_index(str(error)), MAX_CHARS)


def _shorten(text: str, limit: int) -> str:
    text = " ".join(text[: 4 * limit].split())
    return text if len(text) <= limit else text[: limit - 1] + "…"


@dataclass
class Sentences:
    """rows: for each reason the first sentences that differ, with the id of the row that each is about."""

    rows: dict[str, dict[str, str]] = field(default_factory=dict)

    def add(self, reason: str, row: str, error: object) -> None:
        """Add the sentence about the row with id `row`, unless the reason has enough sentences."""
        known = self.rows.setdefault(reason, {})
        if len(known) < MAX_SENTENCES:
            known.setdefault(sentence(error), _shorten(row, MAX_CHARS // 4))

    def update(self, other: "Sentences") -> None:
        """Add the sentences of `other`, for example of another process."""
        for reason, known in other.rows.items():
            for text, row in known.items():
                self.add(reason, row, text)

    def lines(self, counts: Mapping[str, int]) -> list[str]:
        """A line for each reason of `counts`: its count, the reason, and its sentences."""
        return [f"{count} {reason}{self._quote(reason)}" for reason, count in counts.items()]

    def describe(self, counts: Mapping[str, int]) -> str:
        """The lines of `counts` as one text; "" if there are none."""
        return "; ".join(self.lines(counts))

    def _quote(self, reason: str) -> str:
        quoted = "; ".join(f"row {row!r}: {text}" for text, row in self.rows.get(reason, {}).items())
        return f" ({quoted})" if quoted else ""
