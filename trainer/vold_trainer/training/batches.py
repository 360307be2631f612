"""The batch of each step, generated from prompts or taken from traces: a function of seed and step alone."""

import random
from collections.abc import Iterator, Sequence
from pathlib import Path

from vold_trainer.config import TrainConfig
from vold_trainer.data import Example, PromptOrder, TraceOrder
from vold_trainer.data.keys import row_keys
from vold_trainer.objectives import AnyObjective, Gkd, Needs
from vold_trainer.rollout.base import Rollout
from vold_trainer.student.traces import Trace
from vold_trainer.training import saved_batches
from vold_trainer.training.generation import RolloutBatch, RolloutGenerator


class BatchSource:
    """Makes the batch of a step, or restores the batches of a checkpoint."""

    def __init__(
        self,
        config: TrainConfig,
        objective: AnyObjective,
        generator: RolloutGenerator,
        examples: Sequence[Example],
        traces: Sequence[Trace],
    ) -> None:
        self.config = config
        self.objective = objective
        self.generator = generator
        self._examples = examples
        self._traces = traces
        self._prompt_order = PromptOrder(len(examples), config.rollout.prompts * generator.max_rounds, config.seed)
        keys = row_keys([trace.example for trace in traces])
        self._trace_order = TraceOrder(keys, config.rollout.prompts * config.rollout.group, config.seed)

    def start(self, step: int) -> RolloutBatch:
        """Generate the completions of step `step` or take them from the traces, and request their scores."""
        if self._traces and not self._on_policy(step):
            return self.generator.from_traces(step, [self._traces[index] for index in self._trace_order.indices(step)])
        return self.generator.generate(step, self.examples(step))

    def examples(self, step: int) -> list[Example]:
        """The prompts of step `step`."""
        return [self._examples[index] for index in self._prompt_order.indices(step)]

    def restore(self, folder: Path, processes: int) -> Iterator[RolloutBatch]:
        """This process's share of a checkpoint's batches, with their scores requested again. processes: of the run that
        saved them; the number may differ now. A batch that lacks what its step needs is left out.

        Raises UsageError if a step has other prompts now.
        """
        share, group = self.generator.ranks.share(self.config.rollout.prompts), self.config.rollout.group
        for saved in saved_batches.read(folder, self.examples, processes):
            if saved.rollouts and not _has_what(self.objective.needs_at(saved.step), saved.rollouts[0]):
                continue
            rollouts = [rollout for rollout in saved.rollouts if rollout.row // group in share]
            faults = {place: fault for place, fault in saved.faults.items() if place in share}
            yield self.generator.from_saved(saved.step, saved.version, rollouts, saved.examples, faults)

    def _on_policy(self, step: int) -> bool:
        """Whether the student generates the completions of step `step`."""
        share = self.objective.student_share if isinstance(self.objective, Gkd) else 1.0
        return random.Random(f"{self.config.seed}:{step}").random() < share


def _has_what(needs: Needs, rollout: Rollout) -> bool:
    """Whether a saved rollout has what its step needs."""
    width = 0 if rollout.candidates is None else rollout.candidates.shape[1]
    return width >= needs.candidates and (rollout.logprobs is not None or not needs.rollout_logprobs)
