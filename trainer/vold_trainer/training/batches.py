"""What each step learns from: prompts for the student, or given completions, a function of seed and step alone."""

import random
from collections.abc import Iterator, Sequence
from pathlib import Path

from vold_trainer.config import TrainConfig
from vold_trainer.data import Example, PromptOrder
from vold_trainer.objectives import AnyObjective, Gkd
from vold_trainer.student.traces import Trace
from vold_trainer.training import pending_scores as pending
from vold_trainer.training.generation import RolloutBatch, RolloutGenerator


class Batches:
    """Begins a step's batch, or takes up one that a checkpoint kept."""

    def __init__(
        self,
        config: TrainConfig,
        objective: AnyObjective,
        drawing: RolloutGenerator,
        examples: Sequence[Example],
        traces: Sequence[Trace],
    ) -> None:
        self.config = config
        self.objective = objective
        self.drawing = drawing
        self._examples = examples
        self._traces = traces
        self._order = PromptOrder(len(examples), config.rollout.prompts * drawing.rounds, config.seed)
        self._given = PromptOrder(len(traces), config.rollout.prompts * config.rollout.group, config.seed)

    def begin(self, step: int) -> RolloutBatch:
        """Draw or take the completions of step `step`, and send them off to be scored."""
        if self._traces and not self._on_policy(step):
            return self.drawing.given(step, [self._traces[index] for index in self._given.indices(step)])
        return self.drawing.generate(step, self.examples(step))

    def examples(self, step: int) -> list[Example]:
        """The prompts of step `step`."""
        return [self._examples[index] for index in self._order.indices(step)]

    def kept(self, folder: Path) -> Iterator[RolloutBatch]:
        """This process's share of the batches of a checkpoint that fit what their steps need, sent off again, however
        many processes drew them. Raises UsageError.
        """
        share, group = self.drawing.ranks.share(self.config.rollout.prompts), self.config.rollout.group
        for kept in pending.read(folder, self.examples):
            needs = self.objective.needs_at(kept.step)
            first = kept.rollouts[0]
            width = 0 if first.candidates is None else first.candidates.shape[1]
            if width >= needs.candidates and (first.logprobs is not None or not needs.rollout_logprobs):
                own = [rollout for rollout in kept.rollouts if rollout.row // group in share]
                yield self.drawing.again(kept.step, kept.version, own, kept.examples)

    def _on_policy(self, step: int) -> bool:
        """Whether the student writes this step's completions itself."""
        share = self.objective.student_share if isinstance(self.objective, Gkd) else 1.0
        return random.Random(f"{self.config.seed}:{step}").random() < share
