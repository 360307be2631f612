"""What a batch of sequences costs, and whether computing shared prompts once makes it cheaper.

Kept apart from the queue and the backend, because they must agree: the queue fills a budget by these numbers, and the
backend computes the way they assume.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from functools import reduce
from typing import Self

from vold_teacher.types import Sequence

WORTH_SHARING = 0.75
"""Share prompts where that leaves at most this part of the work: a second forward and its mask have a price too."""


@dataclass(frozen=True, slots=True)
class Size:
    """prompts: different ones. rows: sequences. longest_prompt, longest_completion, longest: tokens to run through the
    model, of the longest prompt, of what follows the prompt (one less than the completion has), and of both together.
    """

    prompts: int
    rows: int
    longest_prompt: int
    longest_completion: int
    longest: int

    @classmethod
    def of(cls, groups: Iterable[list[Sequence]]) -> Self:
        """Of groups of sequences, each with one prompt; at least one group, none of them empty."""
        return reduce(
            cls.__add__,
            (
                cls.of_prompt(len(group[0].prompt), len(group), max(len(item.completion) for item in group) - 1)
                for group in groups
            ),
        )

    @classmethod
    def of_prompt(cls, prompt: int, rows: int, completion: int) -> Self:
        """Of `rows` sequences after one prompt of so many tokens, the longest with `completion` tokens to run."""
        return cls(1, rows, prompt, completion, prompt + completion)

    def __add__(self, other: Self) -> Self:
        """Of both together, where no prompt is in both."""
        return type(self)(
            self.prompts + other.prompts,
            self.rows + other.rows,
            max(self.longest_prompt, other.longest_prompt),
            max(self.longest_completion, other.longest_completion),
            max(self.longest, other.longest),
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
    def worth_sharing(self) -> bool:
        return self.shared_tokens <= WORTH_SHARING * self.separate_tokens

    def tokens(self, can_share: bool) -> int:
        """Padding included, the cheaper way."""
        return self.shared_tokens if can_share and self.worth_sharing else self.separate_tokens


def by_prompt(sequences: Iterable[Sequence]) -> dict[bytes, list[int]]:
    """Indices of the sequences that share each prompt, whichever request they came with."""
    groups: dict[bytes, list[int]] = {}
    for index, sequence in enumerate(sequences):
        groups.setdefault(sequence.prompt.tobytes(), []).append(index)
    return groups
