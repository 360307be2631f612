"""The requests to teacher and verifier, sent while the student still generates, both at the same time, on the clients'
event loop. A score that does not come is missing: it is counted and masked, never a zero.
"""

import asyncio
import concurrent.futures
import contextlib
import math
import time
from collections.abc import Callable, Coroutine, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray
from vold_client import (
    AsyncVerifierClient,
    Completion,
    IdentityChanged,
)

from vold_trainer import tracing
from vold_trainer.config import REFERENCE
from vold_trainer.data import Example
from vold_trainer.objectives import Needs
from vold_trainer.rollout.base import Rollout
from vold_trainer.scoring.chosen import UsedScores
from vold_trainer.scoring.missing import report_fault, request_or_mask
from vold_trainer.scoring.refusals import refuses_row
from vold_trainer.scoring.scores import RolloutScore, StepScores, mask_ids, store_score
from vold_trainer.scoring.teachers import Teacher, TeacherRequirements
from vold_trainer.scoring.twins import OnRefused, TeacherPrompts
from vold_trainer.services.items import settle, verifier_item
from vold_trainer.services.outages import MonitoredService, Outages, Span
from vold_trainer.student.models import Student
from vold_trainer.tasks import ClientTasks

T = TypeVar("T")


class PendingScores:
    """The requests for the scores of one step's completions, and the scores that have come so far.

    The thread that generates calls `submit` and `flush`; the thread that trains calls `wait` and `collect`.
    """

    def __init__(self, scorer: "Scorer", needs: Needs, verify: bool, used: UsedScores | None = None) -> None:
        """used: chooses what teachers with `only: used` are asked for; None: everything."""
        self.scorer = scorer
        self.needs = needs
        self.verify = verify
        self.used = used
        self.scores = StepScores({})
        self.waits: list[Span] = []
        self._unsent: list[Rollout] = []
        self._futures: dict[str, dict[int, concurrent.futures.Future[None]]] = {
            "teacher": {},
            "reference": {},
            "verifier": {},
        }
        self._flushed: concurrent.futures.Future[None] = concurrent.futures.Future()

    def submit(self, rollouts: list[Rollout]) -> None:
        """Add finished rollouts. They are sent in requests of `Scorer.request_size`."""
        self._unsent += rollouts
        while len(self._unsent) >= self.scorer.request_size:
            self._send(self._unsent[: self.scorer.request_size])
            del self._unsent[: self.scorer.request_size]

    def flush(self) -> None:
        """Send the rollouts that are left."""
        if self._unsent:
            self._send(self._unsent)
            self._unsent = []
        if not self._flushed.done():
            self._flushed.set_result(None)

    def wait(self, teacher_rows: Iterable[int], verifier_rows: Iterable[int]) -> None:
        """Wait until teacher and reference have scored `teacher_rows` and the verifier has verified `verifier_rows`.

        Raises RunError if the teacher changed or a service does not come back, and any error of a service that no retry
        mends.
        """
        rows = list(teacher_rows)
        wanted = {"teacher": rows, "reference": rows, "verifier": verifier_rows}
        self._wait(
            {self._futures[key][row] for key, asked in wanted.items() for row in asked if row in self._futures[key]}
        )

    def collect(self) -> StepScores:
        """All scores of the submitted rollouts. Waits for them; raises as `wait` does."""
        self._wait({future for futures in self._futures.values() for future in futures.values()})
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

    async def choose(self, rollouts: list[Rollout]) -> list[Rollout]:
        """Those of the rollouts whose scores the objective uses, once the verdicts are there that decide about it.

        Raises the error of the verdicts' request.
        """
        assert self.used is not None
        if self.used.waits_for_groups:
            await asyncio.wrap_future(self._flushed)
        rows = self.used.rows(rollouts, self.scores.rows)
        for future in {self._futures["verifier"][row] for row in rows}:
            # Shielded: a coroutine that is cancelled must not cancel the request that others wait for.
            await asyncio.shield(asyncio.wrap_future(future))
        chosen = self.used.choose(rollouts, self.scores.rows)
        sent = {rollout.row for rollout in chosen}
        for rollout in rollouts:
            self.scores.rows[rollout.row].sent = rollout.row in sent
        return chosen

    def _send(self, rollouts: list[Rollout]) -> None:
        self.scores.rows.update({rollout.row: RolloutScore() for rollout in rollouts})
        if self.scorer.verifier is not None and self.verify:
            self._start("verifier", rollouts, self.scorer.request_verdicts(self, rollouts))
        if self.scorer.teachers and self.needs.teacher:
            by_teacher: dict[str, list[Rollout]] = {}
            for rollout in rollouts:
                name = self.scorer.route(rollout.example)
                self.scores.rows[rollout.row].teacher = name
                # In this thread, because a tokenizer serves one thread at a time.
                self.scorer.prompts[name].ensure_prepared(rollout.example)
                by_teacher.setdefault(name, []).append(rollout)
            for name, part in by_teacher.items():
                self._start("teacher", part, self.scorer.request_scores(self, name, part))
        if self.scorer.reference is not None and self.needs.reference:
            for rollout in rollouts:
                self.scorer.prompts[REFERENCE].ensure_prepared(rollout.example)
            self._start("reference", rollouts, self.scorer.request_reference(self, rollouts))

    def _start(self, service: str, rollouts: list[Rollout], request: Coroutine[Any, Any, None]) -> None:
        future = self.scorer.submit(request)
        self._futures[service].update(dict.fromkeys((rollout.row for rollout in rollouts), future))


class Scorer:
    """Sends rollouts to teachers and verifier, and stores their scores.

    make_teachers, make_verifier: build the clients on their event loop; no teachers, and None, if the run needs no such
    score. route: maps an example to the name of its teacher. verifier_name, verifier_parameters: for rows that name
    none. zero_on_limit: see `verifier_item`. request_size: rollouts in one request. outages: how long to wait for a
    service that is away. stop_at_faults: raise RowError for a row that a service refuses, whose scores are missing
    otherwise.
    """

    def __init__(
        self,
        *,
        make_teachers: Callable[[], dict[str, Teacher]],
        make_verifier: Callable[[], AsyncVerifierClient] | None,
        route: Callable[[Example], str],
        verifier_name: str = "math",
        verifier_parameters: Mapping[str, Any] | None = None,
        zero_on_limit: bool = False,
        temperature: float = 1.0,
        request_size: int = 32,
        outages: Outages | None = None,
        stop_at_faults: bool = False,
    ) -> None:
        self.tasks = ClientTasks()
        self.teachers = self.tasks.run(_call(make_teachers))
        self.reference = self.teachers.pop(REFERENCE, None)
        self.verifier = self.tasks.run(_call(make_verifier)) if make_verifier else None
        self.route = route
        self.verifier_name = verifier_name
        self.verifier_parameters = dict(verifier_parameters or {})
        self.zero_on_limit = zero_on_limit
        self.temperature = temperature
        self.request_size = request_size
        self.outages = outages or Outages()
        self.stop_at_faults = stop_at_faults
        self.services = {
            teacher.key: MonitoredService(teacher.key, teacher.client, self.outages) for teacher in self.scoring_models
        }
        if self.verifier is not None:
            self.services["verifier"] = MonitoredService("verifier", self.verifier, self.outages)
        self.special_ids: frozenset[int] = frozenset()
        self.prompts: dict[str, TeacherPrompts] = {}

    @property
    def scoring_models(self) -> list[Teacher]:
        """The teachers and the reference, if it is a service."""
        return [*self.teachers.values(), *([self.reference] if self.reference is not None else [])]

    def service_states(self) -> list[tuple[str, str]]:
        """(key, state) of each service: the model, and how its requests go or how long it has been away."""
        return [(key, f"{self._served_model(key)} · {service.state()}") for key, service in self.services.items()]

    def _served_model(self, key: str) -> str:
        """The name of the teacher's model or of the verifier at this key."""
        models = [t.info.identity.model for t in self.scoring_models if t.key == key and t.info is not None]
        return Path(models[0]).name if models else self.verifier_name if key == "verifier" else "no handshake yet"

    def handshake(self, student: Student, requirements: TeacherRequirements) -> list[Teacher]:
        """Complete the handshake with every teacher and the reference; from then on a change of identity is an error,
        unless the config allows it. Returns them. Raises HandshakeError if a teacher does not fit.
        """
        self.special_ids = frozenset(student.tokenizer.all_special_ids)
        for teacher in self.scoring_models:
            info = self.tasks.run(teacher.client.info())
            required = requirements
            if teacher is self.reference:
                required = replace(requirements, objective="kl_beta", needs=Needs(teacher=True))
            teacher.complete_handshake(info, self.tasks.run(teacher.client.tokenizer()), student, required)
            self.prompts[teacher.name] = TeacherPrompts(student, teacher)
        return self.scoring_models

    def prepare_prompts(self, examples: Sequence[Example], on_refused: OnRefused | None = None) -> None:
        """Make the teachers' prompts of these examples. on_refused: receives those that their teachers cannot read.

        Raises UsageError for the first of them without on_refused.
        """
        for name, prompts in self.prompts.items():
            prompts.prepare([e for e in examples if name == REFERENCE or self.route(e) == name], on_refused)

    def begin(self, needs: Needs, *, verify: bool = True, used: UsedScores | None = None) -> PendingScores:
        """Begin a step's scores. needs: what to request from the teachers. verify: whether to request verdicts. used:
        chooses what teachers with `only: used` are asked for; it needs the verdicts.
        """
        return PendingScores(self, needs, verify, used)

    def submit(self, request: Coroutine[Any, Any, None]) -> "concurrent.futures.Future[None]":
        """Run `request` on the clients' event loop; `close` cancels it."""
        return self.tasks.submit(request)

    def close(self) -> None:
        self.tasks.close()
        for service in self.services.values():
            self.tasks.run(service.aclose())
        for client in (*(teacher.client for teacher in self.scoring_models), self.verifier):
            if client is not None:
                self.tasks.run(client.aclose())

    async def request_scores(self, pending: PendingScores, name: str, rollouts: list[Rollout]) -> None:
        """Have these rollouts scored by the teacher `name`, or those of them that it is to be asked for."""
        teacher = self.teachers[name]
        if pending.used is not None and teacher.only_used:
            rollouts = await pending.choose(rollouts)
        if not rollouts:
            return

        async def request(part: list[Rollout]) -> None:
            with _record_span(pending.scores, "teacher"), tracing.span("score", rollouts=len(part)):
                await self._score(teacher, pending.needs, part, pending.scores)

        await request_or_mask(
            "teacher", self.services[teacher.key], request, rollouts, pending.scores, stop_at_faults=self.stop_at_faults
        )

    async def request_reference(self, pending: PendingScores, rollouts: list[Rollout]) -> None:
        """Have these rollouts scored by the reference."""
        reference = self.reference
        assert reference is not None

        async def request(part: list[Rollout]) -> None:
            with _record_span(pending.scores, "reference"), tracing.span("reference", rollouts=len(part)):
                await self._score(reference, Needs(), part, pending.scores)

        await request_or_mask(
            "reference",
            self.services[reference.key],
            request,
            rollouts,
            pending.scores,
            stop_at_faults=self.stop_at_faults,
        )

    async def request_verdicts(self, pending: PendingScores, rollouts: list[Rollout]) -> None:
        """Have these rollouts verified."""

        async def request(part: list[Rollout]) -> None:
            with _record_span(pending.scores, "verifier"), tracing.span("verify", rollouts=len(part)):
                await self._verify(part, pending.scores)

        await request_or_mask(
            "verifier", self.services["verifier"], request, rollouts, pending.scores, stop_at_faults=self.stop_at_faults
        )

    async def _score(self, teacher: Teacher, needs: Needs, rollouts: list[Rollout], scores: StepScores) -> None:
        is_reference = teacher is self.reference
        service = "reference" if is_reference else "teacher"
        assert teacher.info is not None
        assert teacher.handshake is not None
        assert teacher.translation is not None
        support_V = self._support_mask(teacher.handshake.shared_V.numpy(), needs)
        prompts: dict[tuple[int, ...], int] = {}
        completions, views = [], {}
        for rollout in rollouts:
            view = teacher.translation(rollout.ids)
            if not view.ids:
                setattr(scores.rows[rollout.row], f"{service}_logprobs", np.full(len(rollout.ids), np.nan, np.float32))
                continue
            views[rollout.row] = view
            candidates = None
            if needs.candidates:
                assert rollout.candidates is not None
                candidates = mask_ids(view.of_teacher(rollout.candidates), support_V)[0]
            prompt_ids = self.prompts[teacher.name](rollout.example, rollout.prompt_ids)
            prompt = prompts.setdefault(prompt_ids, len(prompts))
            completions.append(Completion(prompt, view.ids, candidates, id=str(rollout.row)))
        if not completions:
            return
        try:
            reply = await teacher.client.score(
                list(prompts),
                completions,
                top_k=needs.top_k,
                entropy=needs.entropy,
                temperature=self.temperature,
                expect=None if teacher.config.allow_identity_change else teacher.info.identity,
            )
        except IdentityChanged as error:
            raise teacher.changed_error(error) from error
        teacher.check_identity(reply.identity)
        by_row = {rollout.row: rollout for rollout in rollouts}
        for score in reply.scores:
            row = int(score.id)
            if score.error is not None or score.logprobs is None:
                scores.add_missing(service, by_row[row], score.error, "the reply has no log-probabilities")
                if score.error is not None and refuses_row(score.error, by_row[row].example):
                    report_fault(by_row[row].example, score.error, scores, stop=self.stop_at_faults)
                continue
            if is_reference:
                found = RolloutScore()
                store_score(found, by_row[row], score, views[row], support_V)
                scores.rows[row].reference_logprobs = found.teacher_logprobs
            else:
                store_score(scores.rows[row], by_row[row], score, views[row], support_V)

    def _support_mask(self, shared_V: NDArray[np.bool_], needs: Needs) -> NDArray[np.bool_]:
        """bool [V]: the ids that a support may contain."""
        support_V = shared_V.copy()
        if needs.mask_special:
            support_V[[token for token in self.special_ids if token < len(support_V)]] = False
        return support_V

    async def _verify(self, rollouts: list[Rollout], scores: StepScores) -> None:
        assert self.verifier is not None
        items = [
            verifier_item(
                rollout.example,
                rollout.text,
                self.verifier_name,
                self.verifier_parameters,
                str(rollout.row),
                zero_on_limit=self.zero_on_limit,
            )
            for rollout in rollouts
        ]
        by_row = {rollout.row: rollout for rollout in rollouts}
        for verdict in map(settle, await self.verifier.verify(items)):
            row = int(verdict.id)
            score = scores.rows[row]
            if verdict.error is not None or verdict.reward is None or not math.isfinite(verdict.reward):
                text = f"the reward is {verdict.reward}: {verdict.reason}"
                scores.add_missing("verifier", by_row[row], verdict.error, text)
                score.reason = score.missing["verifier"]
                example = by_row[row].example
                if verdict.error is not None and refuses_row(verdict.error, example):
                    report_fault(example, verdict.error, scores, stop=self.stop_at_faults)
                continue
            score.reward, score.correct = verdict.reward, bool(verdict.correct)
            score.extracted, score.reason = verdict.extracted, verdict.reason


@contextlib.contextmanager
def _record_span(scores: StepScores, lane: str) -> Iterator[None]:
    start = time.monotonic()
    try:
        yield
    finally:
        scores.spans.append((lane, start, time.monotonic()))


async def _call(make: Callable[[], T]) -> T:
    return make()
