"""Scores of rollouts, asked for while the student still generates: teacher and verifier at the same time, on the
clients' event loop. A score that does not come is missing: it is counted and masked, never a zero.
"""

import concurrent.futures
import contextlib
import time
from collections import Counter
from collections.abc import Callable, Coroutine, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray
from vold_client import (
    AsyncVerifierClient,
    Completion,
    CompletionScore,
    DeadlineExceeded,
    IdentityChanged,
    Item,
    ResourceExhausted,
    VoldError,
)

from vold_trainer import tracing
from vold_trainer.data import Example
from vold_trainer.objectives import Needs
from vold_trainer.rollout.base import Rollout
from vold_trainer.scoring.handshake import teacher_view
from vold_trainer.scoring.teachers import Teacher, TeacherRequirements
from vold_trainer.scoring.twins import TeacherPrompts
from vold_trainer.services.outages import MonitoredService, Outages, Span
from vold_trainer.student.models import Student
from vold_trainer.tasks import ClientTasks

T = TypeVar("T")
Floats = NDArray[np.float32]


@dataclass
class RolloutScore:
    """What is known of one rollout; None where it is missing or nobody asked.

    teacher_logprobs: float32 [T], NaN at masked positions. entropy: float32 [T], the teacher's, NaN where it did not
    look. support_ids: int64 [T, K], and support_logprobs: float32 [T, K], the teacher's, NaN where the id is masked.
    teacher: who was asked.
    """

    teacher_logprobs: Floats | None = None
    entropy: Floats | None = None
    support_ids: NDArray[np.int64] | None = None
    support_logprobs: Floats | None = None
    teacher: str = ""
    reward: float | None = None
    correct: bool | None = None
    extracted: str | None = None
    reason: str = ""


@dataclass
class StepScores:
    """The scores of a step, by row. missing: how many scores did not come, by "teacher: CODE" or "verifier: CODE"."""

    rows: dict[int, RolloutScore]
    missing: Counter[str] = field(default_factory=Counter)
    spans: list[Span] = field(default_factory=list)

    def count_missing(self, who: str) -> int:
        return sum(count for reason, count in self.missing.items() if reason.startswith(who))


class PendingScores:
    """What the services are asked about the completions of one step, and what came back so far.

    `submit` and `flush` are for whoever draws, `wait` and `collect` for whoever learns.
    """

    def __init__(self, scorer: "Scorer", needs: Needs, verify: bool) -> None:
        self.scorer = scorer
        self.needs = needs
        self.verify = verify
        self.scores = StepScores({})
        self.waits: list[Span] = []
        self._unsent: list[Rollout] = []
        self._answers: dict[str, dict[int, concurrent.futures.Future[None]]] = {"teacher": {}, "verifier": {}}

    def submit(self, rollouts: list[Rollout]) -> None:
        """Take finished rollouts; they are sent once `batch` of them are there."""
        self._unsent += rollouts
        while len(self._unsent) >= self.scorer.batch:
            self._send(self._unsent[: self.scorer.batch])
            del self._unsent[: self.scorer.batch]

    def flush(self) -> None:
        """Send the rest."""
        if self._unsent:
            self._send(self._unsent)
            self._unsent = []

    def wait(self, taught: Iterable[int], judged: Iterable[int]) -> None:
        """Wait for the teacher's answers about the rows `taught`, and the verifier's about `judged`.

        Raises RunError where the teacher changed or a service does not come back, and whatever a service says that no
        retry mends.
        """
        teacher, verifier = self._answers["teacher"], self._answers["verifier"]
        self._wait(
            {teacher[row] for row in taught if row in teacher} | {verifier[row] for row in judged if row in verifier}
        )

    def collect(self) -> StepScores:
        """All scores of what was submitted. Waits for them, and raises what `wait` does."""
        self._wait({future for answers in self._answers.values() for future in answers.values()})
        return self.scores

    def _wait(self, futures: set["concurrent.futures.Future[None]"]) -> None:
        started, idle = time.monotonic(), not all(future.done() for future in futures)
        try:
            done, _ = concurrent.futures.wait(futures, return_when=concurrent.futures.FIRST_EXCEPTION)
        finally:
            if idle:
                self.waits.append(("wait", started, time.monotonic()))
        for future in done:
            future.result()

    def _send(self, rollouts: list[Rollout]) -> None:
        self.scores.rows.update({rollout.row: RolloutScore() for rollout in rollouts})
        if self.scorer.teachers and self.needs.teacher:
            asked: dict[str, list[Rollout]] = {}
            for rollout in rollouts:
                name = self.scorer.route(rollout.example)
                self.scores.rows[rollout.row].teacher = name
                self.scorer.prompts[name].know(rollout.example)  # here: a tokenizer serves one thread at a time
                asked.setdefault(name, []).append(rollout)
            for name, part in asked.items():
                self._keep("teacher", part, self.scorer.request_scores(self, name, part))
        if self.scorer.verifier is not None and self.verify:
            self._keep("verifier", rollouts, self.scorer.request_verdicts(self, rollouts))

    def _keep(self, who: str, rollouts: list[Rollout], work: Coroutine[Any, Any, None]) -> None:
        future = self.scorer.submit(work)
        self._answers[who].update(dict.fromkeys((rollout.row for rollout in rollouts), future))


class Scorer:
    """Sends rollouts off as they finish and gathers what comes back.

    make_teachers, make_verifier: build the clients on their loop; no teachers, and None, where the run needs no
    such score. route: which teacher an example asks. batch: rollouts in one request. outages: what is done where a
    service is away.
    """

    def __init__(
        self,
        *,
        make_teachers: Callable[[], dict[str, Teacher]],
        make_verifier: Callable[[], AsyncVerifierClient] | None,
        route: Callable[[Example], str],
        verifier: str = "math",
        parameters: Mapping[str, Any] | None = None,
        temperature: float = 1.0,
        batch: int = 32,
        outages: Outages | None = None,
    ) -> None:
        self.tasks = ClientTasks()
        self.teachers = self.tasks.run(_made(make_teachers))
        self.verifier = self.tasks.run(_made(make_verifier)) if make_verifier else None
        self.route = route
        self.verifier_name = verifier
        self.parameters = dict(parameters or {})
        self.temperature = temperature
        self.batch = batch
        self.outages = outages or Outages()
        self.watched = {
            teacher.key: MonitoredService(teacher.key, teacher.client, self.outages)
            for teacher in self.teachers.values()
        }
        if self.verifier is not None:
            self.watched["verifier"] = MonitoredService("verifier", self.verifier, self.outages)
        self.special_ids: frozenset[int] = frozenset()
        self.prompts: dict[str, TeacherPrompts] = {}

    def state(self) -> list[tuple[str, str]]:
        """How the services are, a line each: who, and whether it is away, or how its requests go."""
        lines = []
        for key, watched in self.watched.items():
            lines.append((key, f"{self._called(key)} · {watched.state()}"))
        return lines

    def _called(self, key: str) -> str:
        """What the service at this key serves."""
        models = [of.info.identity.model for of in self.teachers.values() if of.key == key and of.info is not None]
        return Path(models[0]).name if models else self.verifier_name if key == "verifier" else "not met yet"

    def meet_teachers(self, student: Student, asks: TeacherRequirements) -> list[Teacher]:
        """Learn who the teachers are; from now on only these may answer. Raises HandshakeError where one is unfit."""
        self.special_ids = frozenset(student.tokenizer.all_special_ids)
        for teacher in self.teachers.values():
            info = self.tasks.run(teacher.client.info())
            teacher.meet(info, self.tasks.run(teacher.client.tokenizer()), student, asks)
            self.prompts[teacher.name] = TeacherPrompts(student, teacher)
        return list(self.teachers.values())

    def prepare(self, examples: Sequence[Example]) -> None:
        """Make what the teachers read of these examples. Raises UsageError for a row that its teacher cannot read."""
        for name, prompts in self.prompts.items():
            prompts.prepare([example for example in examples if self.route(example) == name])

    def begin(self, needs: Needs, *, verify: bool = True) -> PendingScores:
        """Begin a step's scores. needs: what the teachers are asked for. verify: whether the verifier is asked."""
        return PendingScores(self, needs, verify)

    def submit(self, work: Coroutine[Any, Any, None]) -> "concurrent.futures.Future[None]":
        """Run `work` on the clients' loop, at the latest until `close`."""
        return self.tasks.submit(work)

    def close(self) -> None:
        self.tasks.close()
        for watched in self.watched.values():
            self.tasks.run(watched.aclose())
        for client in (*(teacher.client for teacher in self.teachers.values()), self.verifier):
            if client is not None:
                self.tasks.run(client.aclose())

    async def request_scores(self, asked: PendingScores, name: str, rollouts: list[Rollout]) -> None:
        """Have these rollouts scored by the teacher `name`."""
        teacher = self.teachers[name]

        async def ask() -> None:
            with _timed(asked.scores, "teacher"), tracing.span("score", rollouts=len(rollouts)):
                await self._ask_teacher(teacher, asked.needs, rollouts, asked.scores)

        await self._tolerant("teacher", self.watched[teacher.key].call(ask), rollouts, asked.scores)

    async def request_verdicts(self, asked: PendingScores, rollouts: list[Rollout]) -> None:
        """Have these rollouts judged by the verifier."""

        async def ask() -> None:
            with _timed(asked.scores, "verifier"), tracing.span("verify", rollouts=len(rollouts)):
                await self._ask_verifier(rollouts, asked.scores)

        await self._tolerant("verifier", self.watched["verifier"].call(ask), rollouts, asked.scores)

    async def _tolerant(
        self, who: str, work: Coroutine[Any, Any, None], rollouts: list[Rollout], scores: StepScores
    ) -> None:
        """Count what a service that is too slow or too full loses. A mistake, a change of teacher or an outage past its
        limit ends the run.
        """
        try:
            await work
        except (DeadlineExceeded, ResourceExhausted) as error:
            scores.missing[f"{who}: {type(error).__name__}"] += len(rollouts)

    async def _ask_teacher(self, teacher: Teacher, needs: Needs, rollouts: list[Rollout], scores: StepScores) -> None:
        assert teacher.info is not None
        assert teacher.handshake is not None
        known_V = teacher.handshake.known_V.numpy()
        counts_V = known_V.copy()
        if needs.mask_special:
            counts_V[[token for token in self.special_ids if token < len(counts_V)]] = False
        prompts: dict[tuple[int, ...], int] = {}
        completions, masks = [], {}
        for rollout in rollouts:
            sent, mask = teacher_view(rollout.ids, teacher.handshake.known_V, teacher.info.vocab_size)
            if not sent:
                scores.rows[rollout.row].teacher_logprobs = np.full(len(rollout.ids), np.nan, np.float32)
                continue
            masks[rollout.row] = mask
            candidates = None
            if needs.candidates:
                assert rollout.candidates is not None
                candidates = _shared(rollout.candidates[: len(sent)], counts_V)[0]
            read = self.prompts[teacher.name](rollout.example, rollout.prompt_ids)
            prompt = prompts.setdefault(read, len(prompts))
            completions.append(Completion(prompt, sent, candidates, id=str(rollout.row)))
        if not completions:
            return
        try:
            result = await teacher.client.score(
                list(prompts),
                completions,
                top_k=needs.top_k,
                entropy=needs.entropy,
                temperature=self.temperature,
                expect=None if teacher.config.allow_identity_change else teacher.info.identity,
            )
        except IdentityChanged as error:
            raise teacher.changed(error) from error
        teacher.check_identity(result.identity)
        asked = {rollout.row: rollout for rollout in rollouts}
        for score in result.scores:
            row = int(score.id)
            if score.error is not None or score.logprobs is None:
                scores.missing[f"teacher: {_name(score.error)}"] += 1
                continue
            _keep(scores.rows[row], asked[row], score, masks[row], counts_V)

    async def _ask_verifier(self, rollouts: list[Rollout], scores: StepScores) -> None:
        assert self.verifier is not None
        items = [
            Item(
                verifier=str(rollout.example.meta.get("verifier", self.verifier_name)),
                completion=rollout.text,
                reference=rollout.example.reference,
                prompt=rollout.example.prompt_text,
                parameters=dict(rollout.example.meta.get("parameters", self.parameters)),
                id=str(rollout.row),
            )
            for rollout in rollouts
        ]
        for verdict in await self.verifier.verify(items):
            score = scores.rows[int(verdict.id)]
            if verdict.error is not None or verdict.reward is None:
                scores.missing[f"verifier: {_name(verdict.error)}"] += 1
                score.reason = str(verdict.error or verdict.reason)
                continue
            score.reward, score.correct = verdict.reward, bool(verdict.correct)
            score.extracted, score.reason = verdict.extracted, verdict.reason


def _keep(
    kept: RolloutScore, rollout: Rollout, score: CompletionScore, mask: list[bool], counts_V: NDArray[np.bool_]
) -> None:
    """Lay a teacher's answer, which may end before the completion does, out along the whole of it."""
    assert score.logprobs is not None
    length = len(rollout.ids)
    kept.teacher_logprobs = _padded(np.where(mask, score.logprobs, np.nan), length)
    if score.entropy is not None:
        kept.entropy = _padded(score.entropy, length)
    ids: NDArray[np.integer] | None = score.top_ids
    logprobs = score.top_logprobs
    if rollout.candidates is not None and isinstance(score.candidate_logprobs, np.ndarray):
        ids, logprobs = rollout.candidates[: len(score.logprobs)], score.candidate_logprobs
    if ids is None or logprobs is None or not ids.size:
        return
    safe, shared = _shared(ids, counts_V)
    kept.support_ids = np.zeros((length, ids.shape[1]), np.int64)
    kept.support_ids[: len(ids)] = safe
    kept.support_logprobs = _padded(np.where(shared, logprobs, np.nan), length)


def _shared(ids: NDArray[np.integer], counts_V: NDArray[np.bool_]) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """(the ids with 0 in place of those that do not count, which of them count)."""
    inside = ids < len(counts_V)
    counts = inside & counts_V[np.where(inside, ids, 0)]
    return np.where(counts, ids, 0).astype(np.int64), counts


def _padded(values: NDArray[Any], length: int) -> Floats:
    out = np.full((length, *values.shape[1:]), np.nan, np.float32)
    out[: len(values)] = values
    return out


def _name(error: VoldError | None) -> str:
    return type(error).__name__ if error is not None else "no value"


@contextlib.contextmanager
def _timed(scores: StepScores, lane: str) -> Iterator[None]:
    start = time.monotonic()
    try:
        yield
    finally:
        scores.spans.append((lane, start, time.monotonic()))


async def _made(make: Callable[[], T]) -> T:
    return make()
