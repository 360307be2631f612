"""What a batch of sequences costs under each layout, and whether computing shared prompts once makes it cheaper.

Kept apart from the queue and the backend, because they must agree: the queue fills a budget by these numbers, and the
backend computes the way they assume.
"""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from enum import Enum
from functools import reduce
from typing import Self

from vold_teacher.types import Sequence

WORTH_SHARING = 0.75
"""Share prompts where that leaves at most this part of the work: a second forward and its mask have a price too."""


class Layout(Enum):
    """How a backend runs a batch. SEPARATE: a row a sequence, padded. SHARED: where it pays, a row a prompt and then a
    row a completion, padded. PACKED: every prompt once and every completion, one after another without padding.
    """

    SEPARATE = "separate"
    SHARED = "shared"
    PACKED = "packed"


@dataclass(frozen=True, slots=True)
class Size:
    """prompts: different ones. rows: sequences. longest_prompt, longest_completion, longest: tokens to run through the
    model, of the longest prompt, of what follows the prompt (one less than the completion has), and of both together.
    prompt_tokens: of the different prompts. row_prompt_tokens: the same, for each row again. completion_tokens: of all.
    """

    prompts: int
    rows: int
    longest_prompt: int
    longest_completion: int
    longest: int
    prompt_tokens: int
    row_prompt_tokens: int
    completion_tokens: int

    @classmethod
    def of(cls, groups: Iterable[list[Sequence]]) -> Self:
        """Of groups of sequences, each with one prompt; at least one group, none of them empty."""
        sizes = (reduce(cls.with_row, group[1:], cls.of_one(group[0])) for group in groups)
        return reduce(cls.__add__, sizes)

    @classmethod
    def of_one(cls, sequence: Sequence) -> Self:
        prompt, completion = len(sequence.prompt), len(sequence.completion) - 1
        return cls(1, 1, prompt, completion, prompt + completion, prompt, prompt, completion)

    def with_row(self, sequence: Sequence) -> Self:
        """Of these and one more completion of the same single prompt."""
        other = self.of_one(sequence)
        return replace(self + other, prompts=1, prompt_tokens=self.prompt_tokens)

    def __add__(self, other: Self) -> Self:
        """Of both together, where no prompt is in both."""
        return type(self)(
            self.prompts + other.prompts,
            self.rows + other.rows,
            max(self.longest_prompt, other.longest_prompt),
            max(self.longest_completion, other.longest_completion),
            max(self.longest, other.longest),
            self.prompt_tokens + other.prompt_tokens,
            self.row_prompt_tokens + other.row_prompt_tokens,
            self.completion_tokens + other.completion_tokens,
        )

    @property
    def separate_tokens(self) -> int:
        """Padding included, where every row runs its prompt and its completion."""
        return self.rows * self.longest

    @property
    def shared_tokens(self) -> int:
        """Padding included, where every prompt runs once."""
        return self.prompts * self.longest_prompt + self.rows * self.longest_completion

    @property
    def packed_tokens(self) -> int:
        """Where every prompt runs once and nothing is padded."""
        return self.prompt_tokens + self.completion_tokens

    def shares(self, layout: Layout) -> bool:
        """Whether every prompt is run once."""
        if layout is Layout.SHARED:
            return self.shared_tokens <= WORTH_SHARING * self.separate_tokens
        return layout is Layout.PACKED

    def tokens(self, layout: Layout) -> int:
        """Padding included."""
        if layout is Layout.PACKED:
            return self.packed_tokens
        return self.shared_tokens if self.shares(layout) else self.separate_tokens

    def padding(self, layout: Layout) -> int:
        """Of `tokens`, those that only fill up rows."""
        prompts = self.prompt_tokens if self.shares(layout) else self.row_prompt_tokens
        return self.tokens(layout) - prompts - self.completion_tokens


def by_prompt(sequences: Iterable[Sequence]) -> dict[bytes, list[int]]:
    """Indices of the sequences that share each prompt, whichever request they came with."""
    groups: dict[bytes, list[int]] = {}
    for index, sequence in enumerate(sequences):
        groups.setdefault(sequence.prompt.tobytes(), []).append(index)
    return groups
