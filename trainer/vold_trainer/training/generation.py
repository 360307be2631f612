"""The first half of a step: completions of its prompts, drawn, and sent to be scored.

Every completion goes to teacher and verifier as soon as it ends, while the others are still being drawn.
Shapes: P prompts, G completions of a prompt.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial

from vold_trainer import tracing
from vold_trainer.config import TrainConfig
from vold_trainer.data import Example
from vold_trainer.objectives import AnyObjective, Dapo, Needs
from vold_trainer.processes.ranks import Ranks
from vold_trainer.rollout.base import Engine, Rollout, Sampling
from vold_trainer.scoring.batch import AwaitScores, ScoredBatch
from vold_trainer.scoring.scorer import PendingScores, RolloutScore, Scorer, StepScores
from vold_trainer.services.outages import Span
from vold_trainer.student.models import Student
from vold_trainer.student.traces import Trace


@dataclass
class RolloutBatch:
    """A step's rollouts, as a rule still being scored. all: with those that nothing will be learned from. needs: what
    was asked. version: the updates that the weights which drew them had had; None where they were given.
    """

    step: int
    version: int | None
    needs: Needs
    examples: Sequence[Example]
    learned: ScoredBatch
    all: ScoredBatch
    asked: list[PendingScores]
    drawing: list[Span] = field(default_factory=list)
    figures: dict[str, float] = field(default_factory=dict)

    @property
    def staleness(self) -> int:
        """How many updates older than the weights that learn from them those were that drew them."""
        return 0 if self.version is None else self.step - self.version

    def found(self) -> StepScores:
        """All scores. Waits for them; raises RunError where they cannot come."""
        found = StepScores({})
        for asked in self.asked:
            scores = asked.collect()
            found.rows.update(scores.rows)
            found.missing.update(scores.missing)
            found.spans += scores.spans
        return found

    @property
    def waits(self) -> list[Span]:
        """When nothing was done but waiting for scores."""
        return [span for asked in self.asked for span in asked.waits]


def rounds_of(objective: AnyObjective) -> int:
    """How often a step may draw prompts."""
    return objective.rounds if isinstance(objective, Dapo) else 1


class RolloutGenerator:
    """Draws the completions of a step and has them scored."""

    def __init__(self, config: TrainConfig, student: Student, engine: Engine, scorer: Scorer, ranks: Ranks) -> None:
        self.config = config
        self.ranks = ranks
        self.objective = config.objective
        self.student = student
        self.engine = engine
        self.scorer = scorer
        self.rounds = rounds_of(config.objective)

    def generate(self, step: int, examples: Sequence[Example]) -> RolloutBatch:
        """Sample completions of the prompts and send them off; further rounds, where the objective allows them, until
        there are enough groups to learn from. examples: the whole step's, of which this process takes its share.

        Waits for the other processes only between rounds: with one round it may run beside whatever they do.
        """
        needs, version = self.objective.needs_at(step), self.engine.version
        if self.rounds == 1:
            rollouts, asked, span = self._round(step, examples, needs, 0)
            scored = self._coming(rollouts, asked, self.config.rollout.group)
            return RolloutBatch(step, version, needs, examples, scored, scored, [asked], [span])
        wanted = self.config.rollout.prompts
        drawn: list[Rollout] = []
        scores: list[RolloutScore] = []
        parts, spans = list[PendingScores](), list[Span]()
        for number in range(self.rounds):
            part = examples[number * wanted : (number + 1) * wanted]
            rollouts, asked, span = self.ranks.together(partial(self._whole_round, step, part, needs, number))
            rows = asked.scores.rows
            drawn += rollouts
            scores += [rows[rollout.row] for rollout in rollouts]
            parts.append(asked)
            spans.append(span)
            everything = self._scored(drawn, scores, self.config.rollout.group)
            groups = self._informative(everything)
            if sum(groups.values()) >= wanted:
                break
        kept = [group for group, informs in groups.items() if informs][:wanted] or list(groups)[:wanted]
        learned = self._only(everything, kept)
        figures = {"dapo/rounds": float(len(parts)), "dapo/dropped_groups": float(len(groups) - len(kept))}
        return RolloutBatch(step, version, needs, examples, learned, everything, parts, spans, figures)

    def _whole_round(
        self, step: int, examples: Sequence[Example], needs: Needs, number: int
    ) -> tuple[list[Rollout], PendingScores, Span]:
        """A round, and all of its scores."""
        drawn = self._round(step, examples, needs, number)
        drawn[1].collect()
        return drawn

    def _round(
        self, step: int, examples: Sequence[Example], needs: Needs, number: int
    ) -> tuple[list[Rollout], PendingScores, Span]:
        """(rollouts, what is asked about them, when they were drawn)."""
        asked = self.scorer.begin(needs)
        share = self.ranks.share(len(examples))
        first = number * self.config.rollout.prompts + share.start
        started = time.monotonic()
        # Not current: what is asked of the services meanwhile is a part of the step beside it, not of generating.
        with tracing.span("generate", current=False):
            drawn = self.engine.generate(
                [examples[index] for index in share],
                self.sampling(needs),
                seed=self.config.seed * 1_000_003 + step,
                first_row=first * self.config.rollout.group,
                on_finished=asked.submit,
            )
        asked.flush()
        return drawn, asked, ("generate", started, time.monotonic())

    def sampling(self, needs: Needs) -> Sampling:
        """How completions are drawn."""
        rollout = self.config.rollout
        return Sampling(
            group=rollout.group,
            max_tokens=rollout.max_tokens,
            temperature=rollout.temperature,
            top_p=rollout.top_p,
            logprobs=True,
            candidates=needs.candidates,
        )

    def _informative(self, scored: ScoredBatch) -> dict[int, bool]:
        """Of every group of the step, on all processes and in order: whether it has right and wrong completions."""
        numbers = [rollout.row // scored.group for rollout in scored.rollouts[:: scored.group]]
        own = list(zip(numbers, scored.informative.tolist(), strict=True))
        return dict(sorted(pair for part in self.ranks.gather(own) for pair in part))

    def _only(self, scored: ScoredBatch, groups: Sequence[int]) -> ScoredBatch:
        """This process's completions of these groups."""
        wanted = set(groups)
        kept = [place for place, rollout in enumerate(scored.rollouts) if rollout.row // scored.group in wanted]
        return self._scored([scored.rollouts[p] for p in kept], [scored.scores[p] for p in kept], scored.group)

    def again(self, step: int, version: int, rollouts: list[Rollout], examples: Sequence[Example]) -> RolloutBatch:
        """Completions that were drawn before, by weights of `version` updates: sent off once more."""
        needs = self.objective.needs_at(step)
        asked = self._send(rollouts, needs)
        scored = self._coming(rollouts, asked, self.config.rollout.group)
        return RolloutBatch(step, version, needs, examples, scored, scored, [asked])

    def given(self, step: int, traces: Sequence[Trace]) -> RolloutBatch:
        """Completions that somebody else wrote, to be scored by the teacher alone. traces: the whole step's."""
        examples = [trace.example for trace in traces]
        share = self.ranks.share(len(traces))
        own = [traces[row] for row in share]
        prompts = self.student.prompt_ids([trace.example for trace in own])
        rollouts = [
            Rollout(row, trace.example, tuple(ids), trace.ids, self.student.tokenizer.decode(trace.ids), False)
            for row, trace, ids in zip(share, own, prompts, strict=True)
        ]
        needs = self.objective.needs_at(step)
        asked = self._send(rollouts, needs, verify=False)
        scored = self._coming(rollouts, asked, 1)
        return RolloutBatch(step, None, needs, examples, scored, scored, [asked], figures={"objective/on_policy": 0.0})

    def _send(self, rollouts: list[Rollout], needs: Needs, *, verify: bool = True) -> PendingScores:
        asked = self.scorer.begin(needs, verify=verify)
        asked.submit(rollouts)
        asked.flush()
        return asked

    def _coming(self, rollouts: list[Rollout], asked: PendingScores, group: int) -> ScoredBatch:
        """Rollouts whose scores may still be on their way."""
        return self._scored(rollouts, [asked.scores.rows[r.row] for r in rollouts], group, asked.wait)

    def _scored(
        self, rollouts: list[Rollout], scores: list[RolloutScore], group: int, arrive: AwaitScores | None = None
    ) -> ScoredBatch:
        return ScoredBatch(
            rollouts,
            scores,
            group,
            advantage_std=getattr(self.objective, "advantage_std", True),
            max_tokens=self.config.rollout.max_tokens,
            overlong=getattr(self.objective, "overlong", 0.0),
            arrive=arrive,
        )
