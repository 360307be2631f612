"""The cost of a batch of sequences under each layout, and whether computing shared prompts once reduces it.

The queue and the backend both use this module, because they must agree: the queue fills its token budget by these
numbers, and the backend computes the way they assume.
"""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from enum import Enum
from functools import reduce
from typing import Self

from vold_teacher.types import Sequence

MAX_SHARED_COST = 0.75
"""Share prompts if the cost is at most this fraction of the separate cost: a second forward and its mask cost too."""


class Layout(Enum):
    """How a backend runs a batch. SEPARATE: one padded row per sequence. SHARED: if it is cheaper, one padded row per
    prompt and then one per completion. PACKED: every prompt once and every completion, in one row without padding.
    """

    SEPARATE = "separate"
    SHARED = "shared"
    PACKED = "packed"


@dataclass(frozen=True, slots=True)
class BatchSize:
    """prompts: the number of different prompts. rows: the number of sequences. longest_prompt, longest_completion,
    longest_sequence: the most tokens to run of a prompt, of a completion (all but its last token) and of both together.
    prompt_tokens: of the different prompts. row_prompt_tokens: with each prompt counted once per sequence.
    completion_tokens: of all completions.
    """

    prompts: int
    rows: int
    longest_prompt: int
    longest_completion: int
    longest_sequence: int
    prompt_tokens: int
    row_prompt_tokens: int
    completion_tokens: int

    @classmethod
    def of_groups(cls, groups: Iterable[list[Sequence]]) -> Self:
        """groups: sequences of one prompt each; at least one group, none of them empty."""
        sizes = (reduce(cls.with_completion, group[1:], cls.of_sequence(group[0])) for group in groups)
        return reduce(cls.__add__, sizes)

    @classmethod
    def of_sequence(cls, sequence: Sequence) -> Self:
        prompt, completion = len(sequence.prompt), len(sequence.completion) - 1
        return cls(1, 1, prompt, completion, prompt + completion, prompt, prompt, completion)

    def with_completion(self, sequence: Sequence) -> Self:
        """With one more completion of the same single prompt."""
        other = self.of_sequence(sequence)
        return replace(self + other, prompts=1, prompt_tokens=self.prompt_tokens)

    def __add__(self, other: Self) -> Self:
        """The size of both batches together; no prompt is in both."""
        return type(self)(
            self.prompts + other.prompts,
            self.rows + other.rows,
            max(self.longest_prompt, other.longest_prompt),
            max(self.longest_completion, other.longest_completion),
            max(self.longest_sequence, other.longest_sequence),
            self.prompt_tokens + other.prompt_tokens,
            self.row_prompt_tokens + other.row_prompt_tokens,
            self.completion_tokens + other.completion_tokens,
        )

    @property
    def separate_tokens(self) -> int:
        """Padding included, if every row runs its prompt and its completion."""
        return self.rows * self.longest_sequence

    @property
    def shared_tokens(self) -> int:
        """Padding included, if every prompt runs once."""
        return self.prompts * self.longest_prompt + self.rows * self.longest_completion

    @property
    def packed_tokens(self) -> int:
        """If every prompt runs once and nothing is padded."""
        return self.prompt_tokens + self.completion_tokens

    def shares_prompts(self, layout: Layout) -> bool:
        """Whether every prompt runs once."""
        if layout is Layout.SHARED:
            return self.shared_tokens <= MAX_SHARED_COST * self.separate_tokens
        return layout is Layout.PACKED

    def tokens(self, layout: Layout) -> int:
        """Tokens to run under a layout, padding included."""
        if layout is Layout.PACKED:
            return self.packed_tokens
        return self.shared_tokens if self.shares_prompts(layout) else self.separate_tokens

    def padding(self, layout: Layout) -> int:
        """The padding among `tokens`."""
        prompts = self.prompt_tokens if self.shares_prompts(layout) else self.row_prompt_tokens
        return self.tokens(layout) - prompts - self.completion_tokens


def group_by_prompt(sequences: Iterable[Sequence]) -> dict[tuple[str, bytes], list[int]]:
    """Indices of the sequences of each prompt, across the requests of each owner."""
    groups: dict[tuple[str, bytes], list[int]] = {}
    for index, sequence in enumerate(sequences):
        groups.setdefault((sequence.owner, sequence.prompt.tobytes()), []).append(index)
    return groups
