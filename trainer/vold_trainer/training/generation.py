"""The first half of a step: generates completions of its prompts and requests their scores.

Each completion goes to teacher and verifier as soon as it ends, while others are still being generated.
Shapes: P prompts, G completions of a prompt.
"""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial

from vold_trainer import tracing
from vold_trainer.config import TrainConfig
from vold_trainer.data import Example
from vold_trainer.data.faults import PromptTooLongError, RowError, RowFault
from vold_trainer.objectives import AnyObjective, Dapo, Needs
from vold_trainer.processes.ranks import Ranks
from vold_trainer.rollout.base import Engine, Rollout, Sampling
from vold_trainer.rollout.stop import read_stop
from vold_trainer.scoring.batch import AwaitScores, ScoredBatch
from vold_trainer.scoring.chosen import UsedScores
from vold_trainer.scoring.scorer import PendingScores, Scorer
from vold_trainer.scoring.scores import RolloutScore, StepScores
from vold_trainer.services.outages import Span
from vold_trainer.student.models import Student
from vold_trainer.student.readable import for_readable
from vold_trainer.student.traces import Trace


@dataclass
class RolloutBatch:
    """A step's rollouts, usually with their scores pending.

    version: the number of updates of the weights that generated the rollouts; None for traces. needs: what is requested
    from the services. examples: the whole step's. scored: all rollouts of this process. selected: the rollouts among
    them for the policy update. faults: of the rows whose groups are missing, by their places in `examples`.
    """

    step: int
    version: int | None
    needs: Needs
    examples: Sequence[Example]
    selected: ScoredBatch
    scored: ScoredBatch
    pending: list[PendingScores]
    generate_spans: list[Span] = field(default_factory=list)
    metrics: dict[str, float] = field(default_factory=dict)
    faults: dict[int, RowFault] = field(default_factory=dict)

    def add_faults(self, faults: Mapping[int, RowFault]) -> None:
        """Add the faults of rows that could not be read for the update. faults: by index in `selected`."""
        self.faults |= {self.selected.rollouts[i].row // self.selected.group: fault for i, fault in faults.items()}

    @property
    def absent(self) -> int:
        """The number of completions that this process would have, if the groups of its rows at fault were there."""
        present = {rollout.row // self.scored.group for rollout in self.scored.rollouts}
        return self.scored.group * len(self.faults.keys() - present)

    @property
    def staleness(self) -> int:
        """The number of policy updates between the weights that generated the rollouts and the step's weights."""
        return 0 if self.version is None else self.step - self.version

    def collect(self) -> StepScores:
        """All scores. Waits for them; raises RunError if they cannot come."""
        joined = StepScores({})
        for pending in self.pending:
            scores = pending.collect()
            joined.rows.update(scores.rows)
            joined.missing.update(scores.missing)
            joined.sentences.update(scores.sentences)
            joined.spans += scores.spans
            joined.faults += scores.faults
        for fault in self.faults.values():
            joined.missing[f"row: {fault.kind}"] += self.scored.group
            joined.faults.append(fault)
        return joined

    @property
    def waits(self) -> list[Span]:
        """The spans in which the process was idle, waiting for scores."""
        return [span for pending in self.pending for span in pending.waits]


def max_rounds(objective: AnyObjective) -> int:
    """How many rounds of prompts a step may generate from."""
    return objective.rounds if isinstance(objective, Dapo) else 1


@dataclass(frozen=True)
class _Round:
    """One round's rollouts, their pending scores, the span of their generation, and the rows at fault by place."""

    rollouts: list[Rollout]
    pending: PendingScores
    span: Span
    faults: dict[int, RowFault]


class RolloutGenerator:
    """Makes the rollouts of a step and requests their scores."""

    def __init__(self, config: TrainConfig, student: Student, engine: Engine, scorer: Scorer, ranks: Ranks) -> None:
        self.config = config
        self.ranks = ranks
        self.objective = config.objective
        self.student = student
        self.engine = engine
        self.scorer = scorer
        self.max_rounds = max_rounds(config.objective)
        self.stop = read_stop(config.rollout.stop, student.tokenizer, student.vocab_size, "rollout.stop")
        self.used = UsedScores(config.objective, config.rollout.group)
        self.stop_at_faults = config.data.skip_broken is False
        self.refused: dict[int, tuple[Example, RowFault]] = {}

    def refuse(self, example: Example, error: Exception) -> None:
        """Leave the groups of this example missing from now on. It is held, so that no other gets the same id()."""
        self.refused[id(example)] = (example, RowFault.of(example, error, refused=True))

    def needs_at(self, step: int) -> Needs:
        """The needs of step `step`, on the student's own completions."""
        return self.objective.needs_at(step) | Needs(reference=self.objective.kl_beta > 0)

    def generate(self, step: int, examples: Sequence[Example]) -> RolloutBatch:
        """Generate completions of this process's share of the prompts, and request their scores. If the objective
        allows several rounds, further rounds follow until there are enough informative groups. examples: the whole
        step's.

        Waits for the other processes between rounds only: with one round it may run beside any work of theirs.
        """
        needs, version = self.needs_at(step), self.engine.version
        if self.max_rounds > 1:
            return self._generate_rounds(step, version, examples, needs)
        made = self._generate_round(step, examples, needs, 0)
        scored = self._pending_batch(made.rollouts, made.pending, self.config.rollout.group)
        return RolloutBatch(
            step, version, needs, examples, scored, scored, [made.pending], [made.span], faults=made.faults
        )

    def _generate_rounds(self, step: int, version: int, examples: Sequence[Example], needs: Needs) -> RolloutBatch:
        """Dynamic sampling (DAPO): rounds until there are `rollout.prompts` informative groups."""
        wanted = self.config.rollout.prompts
        rollouts: list[Rollout] = []
        scores: list[RolloutScore] = []
        rounds, spans, faults = list[PendingScores](), list[Span](), dict[int, RowFault]()
        for number in range(self.max_rounds):
            made = self.ranks.run_on_all(partial(self._score_round, step, examples, needs, number))
            rows = made.pending.scores.rows
            rollouts += made.rollouts
            scores += [rows[rollout.row] for rollout in made.rollouts]
            rounds.append(made.pending)
            spans.append(made.span)
            faults |= made.faults
            scored = self._scored_batch(rollouts, scores, self.config.rollout.group)
            informative = self._informative_groups(scored)
            if sum(informative.values()) >= wanted:
                break
        groups = [group for group, informs in informative.items() if informs][:wanted] or list(informative)[:wanted]
        selected = self._select_groups(scored, groups)
        metrics = {"dapo/rounds": float(len(rounds)), "dapo/dropped_groups": float(len(informative) - len(groups))}
        return RolloutBatch(step, version, needs, examples, selected, scored, rounds, spans, metrics, faults)

    def _score_round(self, step: int, examples: Sequence[Example], needs: Needs, number: int) -> "_Round":
        """`_generate_round`, and wait for all of its scores."""
        made = self._generate_round(step, examples, needs, number)
        made.pending.collect()
        return made

    def _generate_round(self, step: int, examples: Sequence[Example], needs: Needs, number: int) -> "_Round":
        """Generate this process's share of round `number`. examples: the whole step's.

        The engine numbers rows as if no group were missing, so a row at fault changes no other row's completions.
        """
        pending = self.scorer.begin(needs, used=self.used)
        prompts, group = self.config.rollout.prompts, self.config.rollout.group
        share = self.ranks.share(len(examples[number * prompts : (number + 1) * prompts]))
        first = number * prompts + share.start
        own = examples[first : first + len(share)]
        faults: dict[int, RowFault] = {
            first + index: self.refused[id(example)][1]
            for index, example in enumerate(own)
            if id(example) in self.refused
        }

        def on_fault(index: int, fault: RowFault) -> None:
            faults.setdefault(first + index, fault)

        def on_finished(rollouts: list[Rollout]) -> None:
            for rollout in rollouts:  # known of prompts with images only now
                if (error := self._too_long(rollout.prompt_ids)) is not None:
                    on_fault(rollout.row // group - first, RowFault.of(rollout.example, error))
            pending.submit([rollout for rollout in rollouts if rollout.row // group not in faults])

        started = time.monotonic()
        # Not current: the requests to the services meanwhile belong to the step, not to the generation.
        with tracing.span("generate", current=False):
            rollouts = self.engine.generate(
                own,
                self.sampling(needs),
                seed=self.config.seed * 1_000_003 + step,
                first_row=first * group,
                on_finished=on_finished,
                on_fault=None if self.stop_at_faults else on_fault,
            )
        pending.flush()
        if self.stop_at_faults and faults:
            raise RowError(next(iter(faults.values())))
        rollouts = [rollout for rollout in rollouts if rollout.row // group not in faults]
        return _Round(rollouts, pending, ("generate", started, time.monotonic()), faults)

    def _too_long(self, prompt_ids: Sequence[int]) -> PromptTooLongError | None:
        limit, max_tokens = self.student.max_positions, self.config.rollout.max_tokens
        if limit is None or len(prompt_ids) + max_tokens <= limit:
            return None
        return self.student.too_long(len(prompt_ids), f"rollout.max_tokens {max_tokens}")

    def sampling(self, needs: Needs) -> Sampling:
        """The sampling options of a step."""
        rollout = self.config.rollout
        return Sampling(
            group=rollout.group,
            max_tokens=rollout.max_tokens,
            temperature=rollout.temperature,
            top_p=rollout.top_p,
            top_k=rollout.top_k,
            min_p=rollout.min_p,
            stop=self.stop,
            logprobs=True,
            candidates=needs.candidates,
        )

    def _informative_groups(self, scored: ScoredBatch) -> dict[int, bool]:
        """By group of the step, of all processes, in order: whether it has correct and wrong completions."""
        numbers = [rollout.row // scored.group for rollout in scored.rollouts[:: scored.group]]
        own = list(zip(numbers, scored.informative.tolist(), strict=True))
        return dict(sorted(pair for part in self.ranks.gather(own) for pair in part))

    def _select_groups(self, scored: ScoredBatch, groups: Sequence[int]) -> ScoredBatch:
        """This process's completions of these groups."""
        wanted = set(groups)
        chosen = [index for index, rollout in enumerate(scored.rollouts) if rollout.row // scored.group in wanted]
        rollouts, scores = [scored.rollouts[i] for i in chosen], [scored.scores[i] for i in chosen]
        return self._scored_batch(rollouts, scores, scored.group)

    def from_saved(
        self,
        step: int,
        version: int,
        rollouts: list[Rollout],
        examples: Sequence[Example],
        faults: Mapping[int, RowFault],
    ) -> RolloutBatch:
        """The batch of rollouts that weights with `version` updates generated before; requests their scores again.

        Raises RowError if a row at fault stops the run.
        """
        if faults and self.stop_at_faults:
            raise RowError(next(iter(faults.values())))
        needs = self.needs_at(step)
        pending = self._request_scores(rollouts, needs)
        scored = self._pending_batch(rollouts, pending, self.config.rollout.group)
        return RolloutBatch(step, version, needs, examples, scored, scored, [pending], faults=dict(faults))

    def from_traces(self, step: int, traces: Sequence[Trace]) -> RolloutBatch:
        """The batch of this process's share of the traces, scored by the teacher alone. traces: the whole step's."""
        examples = [trace.example for trace in traces]
        share = self.ranks.share(len(traces))
        faults = {row: self.refused[id(examples[row])][1] for row in share if id(examples[row]) in self.refused}
        rows = [row for row in share if row not in faults]
        readable, prompts = for_readable(
            self.student.prompt_ids,
            [examples[row] for row in rows],
            None if self.stop_at_faults else lambda index, fault: faults.update({rows[index]: fault}),
        )
        decode = self.student.tokenizer.decode
        rollouts = [
            Rollout(row, examples[row], tuple(ids), traces[row].ids, decode(traces[row].ids), False)
            for row, ids in zip([rows[index] for index in readable], prompts or (), strict=True)
        ]
        needs = self.objective.needs_at(step)
        pending = self._request_scores(rollouts, needs, verify=False)
        scored = self._pending_batch(rollouts, pending, 1)
        metrics = {"objective/on_policy": 0.0}
        return RolloutBatch(step, None, needs, examples, scored, scored, [pending], metrics=metrics, faults=faults)

    def _request_scores(self, rollouts: list[Rollout], needs: Needs, *, verify: bool = True) -> PendingScores:
        pending = self.scorer.begin(needs, verify=verify, used=self.used if verify else None)
        pending.submit(rollouts)
        pending.flush()
        return pending

    def _pending_batch(self, rollouts: list[Rollout], pending: PendingScores, group: int) -> ScoredBatch:
        """A batch whose scores may be pending."""
        return self._scored_batch(rollouts, [pending.scores.rows[r.row] for r in rollouts], group, pending.wait)

    def _scored_batch(
        self, rollouts: list[Rollout], scores: list[RolloutScore], group: int, await_scores: AwaitScores | None = None
    ) -> ScoredBatch:
        return ScoredBatch(
            rollouts,
            scores,
            group,
            advantage_std=getattr(self.objective, "advantage_std", True),
            max_tokens=self.config.rollout.max_tokens,
            overlong=getattr(self.objective, "overlong", 0.0),
            mask_truncated=self.objective.truncated == "mask",
            await_scores=await_scores,
        )
