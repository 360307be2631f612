"""The first half of a step: completions of its prompts, drawn and scored.

Every completion goes to teacher and verifier as soon as it ends, while the others are still being drawn.
Shapes: P prompts, G completions of a prompt.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

from vold_trainer import tracing
from vold_trainer.config import TrainConfig
from vold_trainer.data import Example
from vold_trainer.models import Student
from vold_trainer.objectives import AnyObjective, Dapo
from vold_trainer.ranks import Ranks
from vold_trainer.rollout.base import Engine, Rollout, Sampling
from vold_trainer.scored import Scored
from vold_trainer.scoring import RolloutScore, Scorer, Span, StepScores
from vold_trainer.sft import Trace

ROUND_STRIDE = 1 << 40
"""Between the seeds of the rounds of one step: farther apart than the seeds of any two steps."""


@dataclass
class Drawn:
    """A step's rollouts of this process, right after they were scored. all: with those that nothing is learned from."""

    learned: Scored
    all: Scored
    found: StepScores
    spans: list[Span]
    generate_seconds: float
    wait_seconds: float
    figures: dict[str, float]


def rounds_of(objective: AnyObjective) -> int:
    """How often a step may draw prompts."""
    return objective.rounds if isinstance(objective, Dapo) else 1


class Drawing:
    """Draws and scores the completions of a step."""

    def __init__(self, config: TrainConfig, student: Student, engine: Engine, scorer: Scorer, ranks: Ranks) -> None:
        self.config = config
        self.ranks = ranks
        self.objective = config.objective
        self.student = student
        self.engine = engine
        self.scorer = scorer
        self.rounds = rounds_of(config.objective)

    def draw(self, step: int, examples: Sequence[Example]) -> Drawn:
        """Sample completions of the prompts and have them scored; further rounds, where the objective allows them,
        until there are enough groups to learn from. examples: the whole step's, of which this process takes its share.
        """
        wanted = self.config.rollout.prompts
        rollouts: list[Rollout] = []
        scores: list[RolloutScore] = []
        found, spans = StepScores({}), list[Span]()
        generating = waiting = 0.0
        rounds = 0
        while True:
            part = examples[rounds * wanted : (rounds + 1) * wanted]
            drawn, generated, answer, answered = self.ranks.together(partial(self._round, part, step, rounds))
            rounds += 1
            generating += generated[1] - generated[0]
            waiting += answered - generated[1]
            spans += [("generate", *generated), *answer.spans]
            rollouts += drawn
            scores += [answer.rows.get(rollout.row, RolloutScore()) for rollout in drawn]
            found.missing.update(answer.missing)
            scored = self._scored(rollouts, scores, self.config.rollout.group)
            if rounds == self.rounds or sum(self._informative(scored).values()) >= wanted:
                break
        if self.rounds == 1:
            return Drawn(scored, scored, found, spans, generating, waiting, {})
        groups = self._informative(scored)
        kept = [group for group, informs in groups.items() if informs][:wanted] or list(groups)[:wanted]
        learned = self._only(scored, kept)
        figures = {"dapo/rounds": float(rounds), "dapo/dropped_groups": float(len(groups) - len(kept))}
        return Drawn(learned, scored, found, spans, generating, waiting, figures)

    def _round(
        self, examples: Sequence[Example], step: int, number: int
    ) -> tuple[list[Rollout], tuple[float, float], StepScores, float]:
        """(rollouts, when they were drawn, their scores, when these were there)."""
        share = self.ranks.share(len(examples))
        first = number * self.config.rollout.prompts + share.start
        started = time.monotonic()
        # Not current: what is asked of the services meanwhile is a part of the step beside it, not of generating.
        with tracing.span("generate", current=False):
            drawn = self.engine.draw(
                [examples[index] for index in share],
                self.sampling(),
                seed=self.config.seed * 1_000_003 + step + number * ROUND_STRIDE,
                first_row=first * self.config.rollout.group,
                on_finished=self.scorer.submit,
            )
        generated = time.monotonic()
        return drawn, (started, generated), self.scorer.collect(), time.monotonic()

    def sampling(self) -> Sampling:
        """How this step's completions are drawn."""
        rollout, needs = self.config.rollout, self.scorer.needs
        return Sampling(
            group=rollout.group,
            max_tokens=rollout.max_tokens,
            temperature=rollout.temperature,
            top_p=rollout.top_p,
            logprobs=needs.rollout_logprobs,
            candidates=needs.candidates,
        )

    def _informative(self, scored: Scored) -> dict[int, bool]:
        """Of every group of the step, on all processes and in order: whether it has right and wrong completions."""
        first_rows = [rollout.row // scored.group for rollout in scored.rollouts[:: scored.group]]
        own = zip(first_rows, scored.informative.tolist(), strict=True)
        return dict(sorted(pair for part in self.ranks.gather(list(own)) for pair in part))

    def _only(self, scored: Scored, groups: Sequence[int]) -> Scored:
        """This process's completions of these groups."""
        wanted = set(groups)
        kept = [place for place, rollout in enumerate(scored.rollouts) if rollout.row // scored.group in wanted]
        return self._scored([scored.rollouts[p] for p in kept], [scored.scores[p] for p in kept], scored.group)

    def given(self, traces: Sequence[Trace]) -> Drawn:
        """Completions that somebody else wrote, scored by the teacher alone. traces: the whole step's."""
        share = self.ranks.share(len(traces))
        own = [traces[row] for row in share]
        prompts = self.student.prompt_ids([trace.example for trace in own])
        rollouts = [
            Rollout(row, trace.example, tuple(ids), trace.ids, self.student.tokenizer.decode(trace.ids), False)
            for row, trace, ids in zip(share, own, prompts, strict=True)
        ]
        started = time.monotonic()
        self.scorer.verify = False
        self.scorer.submit(rollouts)
        found = self.ranks.together(self.scorer.collect)
        self.scorer.verify = True
        scored = self._scored(rollouts, [found.rows.get(row, RolloutScore()) for row in share], 1)
        figures = {"objective/on_policy": 0.0}
        return Drawn(scored, scored, found, found.spans, 0.0, time.monotonic() - started, figures)

    def _scored(self, rollouts: Sequence[Rollout], scores: Sequence[RolloutScore], group: int) -> Scored:
        return Scored.of(
            rollouts,
            scores,
            group,
            advantage_std=getattr(self.objective, "advantage_std", True),
            max_tokens=self.config.rollout.max_tokens,
            overlong=getattr(self.objective, "overlong", 0.0),
        )
