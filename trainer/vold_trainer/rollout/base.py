"""Rollouts, and the interface of the engines that generate them.

Shapes: P prompts, G completions of a prompt, T completion positions, K candidates.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from vold_trainer.data import Example
from vold_trainer.data.faults import OnFault
from vold_trainer.rollout.stop import NO_STOP, Stop


@dataclass(frozen=True)
class Rollout:
    """A completion of an example's prompt.

    row: prompt * G + completion, the index in the step. ids: include the id that ended the completion. truncated: the
    completion reached max_tokens. logprobs: float32 [T], the student's log-probabilities at sampling time, before
    top_p. candidates: int64 [T, K], the student's K most likely ids at each position, most likely first. logprobs and
    candidates are None if `Sampling` does not request them.
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
"""Receives completions that have ended."""


@dataclass(frozen=True)
class Sampling:
    """Sampling parameters. group: completions per prompt. temperature: 0 is greedy. top_k: 0 for all ids. logprobs:
    return log-probabilities. candidates: the number K of most likely ids to return at each position. stop: what ends a
    completion besides the student's EOS.
    """

    group: int = 1
    max_tokens: int = 96
    temperature: float = 1.0
    top_p: float = 1.0
    logprobs: bool = False
    candidates: int = 0
    top_k: int = 0
    min_p: float = 0.0
    stop: Stop = NO_STOP

    @property
    def leaves_out(self) -> bool:
        """Whether some ids are never sampled at a position, however the model rates them."""
        return self.top_p < 1 or self.top_k > 0 or self.min_p > 0


class Engine(Protocol):
    """Generates completions with the student's weights."""

    version: int
    """The number of policy updates in the engine's weights, set by `sync`."""

    own_weights: bool
    """Whether the engine has a copy of the weights, so that it can generate during a policy update.

    `generate` is then called from a separate thread, never at the same time as `sync`, and must not use torch's global
    random number generator, which belongs to the policy update."""

    def generate(
        self,
        examples: Sequence[Example],
        sampling: Sampling,
        *,
        seed: int,
        first_row: int = 0,
        on_finished: OnFinished | None = None,
        on_fault: OnFault | None = None,
    ) -> list[Rollout]:
        """Generate `sampling.group` completions of each example, in order. Rows are numbered from `first_row`.

        The completion of a row depends on its prompt, `seed` and the row, not on the other rows. `on_finished` receives
        each completion once, in the order in which they end, in the calling thread.

        `on_fault` receives each example that cannot be used, maybe several times. Its group is absent from the result,
        though `on_finished` may have received a part of it; the rows of the others are numbered as if it were there.
        Without `on_fault`, such an example raises RowError.
        """
        ...

    def sync(self, version: int) -> None:
        """Use the student's current weights from now on. version: the number of policy updates in them."""
        ...

    def close(self) -> None:
        """Release the engine's resources."""
        ...
