"""What a rollout is, and what every engine that draws them offers.

Shapes: P prompts, G completions of a prompt, T completion positions, K ids of a support.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from vold_trainer.data import Example


@dataclass(frozen=True)
class Rollout:
    """One completion. row: its place in the step (prompt * G + completion). ids: with the id that ended it.
    truncated: it ran into max_tokens. logprobs: float32 [T], the student's when it drew the ids, before top_p; None
    where nobody asked. candidates: int64 [T, K], its K most likely ids at each position, most likely first; likewise.
    """

    row: int
    example: Example
    prompt_ids: tuple[int, ...]
    ids: tuple[int, ...]
    text: str
    truncated: bool
    logprobs: NDArray[np.float32] | None = None
    candidates: NDArray[np.int64] | None = None


OnFinished = Callable[[list[Rollout]], None]


@dataclass(frozen=True)
class Sampling:
    """How completions are drawn. temperature: 0 is greedy. logprobs, candidates: keep the student's log-probabilities,
    and so many of its most likely ids at each position.
    """

    group: int = 1
    max_tokens: int = 96
    temperature: float = 1.0
    top_p: float = 1.0
    logprobs: bool = False
    candidates: int = 0


class Engine(Protocol):
    """Draws completions from the student."""

    version: int
    """The updates that the weights it draws from have had, as it was told by `sync`."""

    own_weights: bool
    """Whether it draws from a copy of the weights, so that it may draw while the student learns. `draw` is then called
    from a thread of its own, never at the same time as `sync`; torch's global generator is then the learner's."""

    def generate(
        self,
        examples: Sequence[Example],
        sampling: Sampling,
        *,
        seed: int,
        first_row: int = 0,
        on_finished: OnFinished | None = None,
    ) -> list[Rollout]:
        """`sampling.group` completions of each example, in order, their rows counted from `first_row`.

        What is drawn for a row is a function of seed and row, not of what is drawn beside it. `on_finished` gets every
        completion once, in the order in which they end, from the thread that calls.
        """
        ...

    def sync(self, version: int) -> None:
        """Draw from the student's present weights from now on; `version`: the updates that they have had."""
        ...

    def close(self) -> None: ...
