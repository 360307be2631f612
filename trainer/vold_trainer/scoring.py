"""Scores of rollouts, asked for while the student still generates: teacher and verifier at the same time, on an
event loop of their own thread. A score that does not come is missing: it is counted and masked, never a zero.
"""

import asyncio
import concurrent.futures
import threading
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray
from vold_client import (
    AsyncTeacherClient,
    AsyncVerifierClient,
    Completion,
    DeadlineExceeded,
    Identity,
    IdentityChanged,
    Item,
    ResourceExhausted,
    TeacherInfo,
    TokenizerFile,
    Unavailable,
    VoldError,
)

from vold_trainer import tracing
from vold_trainer.errors import RunError
from vold_trainer.handshake import Handshake, teacher_view
from vold_trainer.rollout.hf import Rollout

T = TypeVar("T")
Floats = NDArray[np.float32]
Span = tuple[str, float, float]
"""(lane, start, end), seconds on time.monotonic()'s clock."""


@dataclass
class RolloutScore:
    """What is known of one rollout. teacher_logprobs: float32 [T], NaN at masked positions; None where missing."""

    teacher_logprobs: Floats | None = None
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


class LoopThread:
    """An event loop on a thread of its own."""

    def __init__(self) -> None:
        self.loop = asyncio.new_event_loop()
        self.thread = threading.Thread(target=self.loop.run_forever, name="vold-scoring", daemon=True)
        self.thread.start()

    def submit(self, work: Coroutine[Any, Any, T]) -> "concurrent.futures.Future[T]":
        return asyncio.run_coroutine_threadsafe(work, self.loop)

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        return self.submit(work).result()

    def close(self) -> None:
        self.loop.call_soon_threadsafe(self.loop.stop)
        self.thread.join()
        self.loop.close()


class Scorer:
    """Sends rollouts off as they finish and gathers what comes back.

    make_teacher, make_verifier: build a client on the scorer's loop; None where the run needs no such score.
    batch: rollouts in one request.
    """

    def __init__(
        self,
        *,
        make_teacher: Callable[[], AsyncTeacherClient] | None,
        make_verifier: Callable[[], AsyncVerifierClient] | None,
        verifier: str = "math",
        parameters: Mapping[str, Any] | None = None,
        temperature: float = 1.0,
        allow_identity_change: bool = False,
        batch: int = 32,
    ) -> None:
        self.thread = LoopThread()
        self.teacher = self.thread.run(_made(make_teacher)) if make_teacher else None
        self.verifier = self.thread.run(_made(make_verifier)) if make_verifier else None
        self.verifier_name = verifier
        self.parameters = dict(parameters or {})
        self.temperature = temperature
        self.allow_identity_change = allow_identity_change
        self.batch = batch
        self.info: TeacherInfo | None = None
        self.handshake: Handshake | None = None
        self.identity_changes: list[Identity] = []
        self._waiting: list[Rollout] = []
        self._pending: list[concurrent.futures.Future[None]] = []
        self._scores = StepScores({})

    def meet_teacher(self) -> tuple[TeacherInfo, TokenizerFile]:
        """Who the teacher is; from now on only this one may answer."""
        assert self.teacher is not None
        self.info = self.thread.run(self.teacher.info())
        return self.info, self.thread.run(self.teacher.tokenizer())

    def submit(self, rollouts: list[Rollout]) -> None:
        """Take finished rollouts; they are sent once `batch` of them are there."""
        self._waiting += rollouts
        while len(self._waiting) >= self.batch:
            self._send(self._waiting[: self.batch])
            del self._waiting[: self.batch]

    def collect(self) -> StepScores:
        """All scores of what was submitted since the last call. Waits for them.

        Raises RunError where the teacher changed, and whatever a service says that no retry mends.
        """
        if self._waiting:
            self._send(self._waiting)
            self._waiting = []
        pending, self._pending = self._pending, []
        scores, self._scores = self._scores, StepScores({})
        for future in concurrent.futures.as_completed(pending):
            future.result()
        return scores

    def close(self) -> None:
        for future in self._pending:
            future.cancel()
        for client in (self.teacher, self.verifier):
            if client is not None:
                self.thread.run(client.aclose())
        self.thread.close()

    def _send(self, rollouts: list[Rollout]) -> None:
        scores = self._scores
        scores.rows.update({rollout.row: RolloutScore() for rollout in rollouts})
        if self.teacher is not None:
            self._pending.append(self.thread.submit(self._tolerant("teacher", self._ask_teacher, rollouts, scores)))
        if self.verifier is not None:
            self._pending.append(self.thread.submit(self._tolerant("verifier", self._ask_verifier, rollouts, scores)))

    async def _tolerant(
        self,
        who: str,
        ask: Callable[[list[Rollout], StepScores], Awaitable[None]],
        rollouts: list[Rollout],
        scores: StepScores,
    ) -> None:
        """Count what an outage loses; let through what is a mistake or a change of teacher."""
        start = time.monotonic()
        try:
            with tracing.span("score" if who == "teacher" else "verify", rollouts=len(rollouts)):
                await ask(rollouts, scores)
        except IdentityChanged as error:
            raise RunError(
                f"the teacher changed in mid-run: {error}. Start a new run with it, or set "
                "teacher.allow_identity_change=true"
            ) from error
        except (Unavailable, DeadlineExceeded, ResourceExhausted) as error:
            scores.missing[f"{who}: {type(error).__name__}"] += len(rollouts)
        finally:
            scores.spans.append((who, start, time.monotonic()))

    async def _ask_teacher(self, rollouts: list[Rollout], scores: StepScores) -> None:
        assert self.teacher is not None
        assert self.info is not None
        assert self.handshake is not None
        prompts: dict[tuple[int, ...], int] = {}
        completions, masks = [], {}
        for rollout in rollouts:
            sent, mask = teacher_view(rollout.ids, self.handshake.known_V, self.info.vocab_size)
            if not sent:
                scores.rows[rollout.row].teacher_logprobs = np.full(len(rollout.ids), np.nan, np.float32)
                continue
            masks[rollout.row] = mask
            prompt = prompts.setdefault(rollout.prompt_ids, len(prompts))
            completions.append(Completion(prompt, sent, id=str(rollout.row)))
        if not completions:
            return
        expect = None if self.allow_identity_change else self.info.identity
        result = await self.teacher.score(list(prompts), completions, temperature=self.temperature, expect=expect)
        if result.identity != self.info.identity:
            if not self.allow_identity_change:
                raise RunError(
                    f"the teacher changed in mid-run: {self.info.identity} was asked, {result.identity} answered. "
                    "Start a new run with it, or set teacher.allow_identity_change=true"
                )
            self.identity_changes.append(result.identity)
        lengths = {rollout.row: len(rollout.ids) for rollout in rollouts}
        for score in result.scores:
            row = int(score.id)
            if score.error is not None or score.logprobs is None:
                scores.missing[f"teacher: {_name(score.error)}"] += 1
                continue
            known = np.full(lengths[row], np.nan, np.float32)
            known[: len(score.logprobs)] = np.where(masks[row], score.logprobs, np.nan)
            scores.rows[row].teacher_logprobs = known

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


def _name(error: VoldError | None) -> str:
    return type(error).__name__ if error is not None else "no value"


async def _made(make: Callable[[], T]) -> T:
    return make()
