"""The verifier's verdicts on answers as they come, many in one call, with the waiting for outages that a run has."""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, replace

from vold_client import AsyncVerifierClient, InvalidArgument, Verdict, VoldError

from vold_trainer.coldstart.window import ATTEMPTS, MAX_UNANSWERED, Item
from vold_trainer.config import VerifierConfig
from vold_trainer.data import Example
from vold_trainer.errors import RunError
from vold_trainer.services.items import settle, verifier_item
from vold_trainer.services.outages import MonitoredService, Outages
from vold_trainer.tasks import run_until_first

BATCH = 64
"""Most answers of one call."""

CALLS_PER_REPLICA = 4

MAX_WAITING = 1024
"""Answers that may wait for a verdict before no more are requested of the teacher."""


@dataclass(frozen=True, slots=True)
class Waiting:
    item: Item
    example: Example
    completion: str
    failures: int = 0


class Verdicts:
    """Answers that wait for their verdicts. on_verdict: called with each; a verdict that could not be reached has its
    error set. is_wanted: whether an answer still needs a verdict. on_room: called when fewer answers wait.
    """

    def __init__(
        self,
        client: AsyncVerifierClient,
        config: VerifierConfig,
        outages: Outages,
        on_verdict: Callable[[Item, Example, Verdict], None],
        is_wanted: Callable[[Item], bool],
        on_room: Callable[[], None],
    ) -> None:
        self.client = client
        self.config = config
        self.on_verdict = on_verdict
        self.is_wanted = is_wanted
        self.on_room = on_room
        self.unverified: dict[Item, VoldError] = {}
        self._service = MonitoredService("verifier", client, outages)
        self._queue: asyncio.Queue[Waiting] = asyncio.Queue()
        self._open = 0
        self._changed = asyncio.Event()

    @property
    def has_room(self) -> bool:
        return self._open < MAX_WAITING

    def submit(self, item: Item, example: Example, completion: str) -> None:
        self._open += 1
        self._queue.put_nowait(Waiting(item, example, completion))

    async def wait_for_room(self) -> None:
        await self._wait_until(lambda: self.has_room)

    async def drain(self) -> None:
        """Return when no answer waits."""
        await self._wait_until(lambda: not self._open)

    async def run(self) -> None:
        """Verify until cancelled. Raises RunError if the verifier does not come back."""
        try:
            await run_until_first(self._work() for _ in range(CALLS_PER_REPLICA * len(self.client.urls)))
        finally:
            await self._service.aclose()

    async def _work(self) -> None:
        while True:
            batch = [await self._queue.get()]
            while len(batch) < BATCH and not self._queue.empty():
                batch.append(self._queue.get_nowait())
            wanted = [waiting for waiting in batch if self.is_wanted(waiting.item)]
            self._end(len(batch) - len(wanted))
            await self._verify(wanted)

    async def _verify(self, batch: list[Waiting]) -> None:
        if not batch:
            return
        items = [
            verifier_item(
                waiting.example,
                waiting.completion,
                self.config.name,
                self.config.parameters,
                zero_on_limit=self.config.on_limit == "zero",
            )
            for waiting in batch
        ]
        verdicts: list[Verdict] = []

        async def call() -> None:
            verdicts[:] = await self.client.verify(items)

        try:
            await self._service.call(call)
        except VoldError as error:
            if len(batch) > 1:  # one of them may be the reason
                for waiting in batch:
                    await self._verify([waiting])
            elif isinstance(error, InvalidArgument):
                self._settle(batch[0], Verdict("", error=error))
            else:
                self._fail(batch[0], error)
            return
        for waiting, verdict in zip(batch, verdicts, strict=True):
            self._settle(waiting, settle(verdict))

    def _settle(self, waiting: Waiting, verdict: Verdict) -> None:
        """Take the verdict, or ask again for one that failed for a reason of the moment."""
        code = verdict.error.code if verdict.error is not None else ""
        if code and code != "INVALID_ARGUMENT" and waiting.failures + 1 < ATTEMPTS:
            self._queue.put_nowait(replace(waiting, failures=waiting.failures + 1))
            return
        self.on_verdict(waiting.item, waiting.example, verdict)
        self._end(1)

    def _fail(self, waiting: Waiting, error: VoldError) -> None:
        """Ask again, or set the answer aside."""
        if waiting.failures + 1 < ATTEMPTS:
            self._queue.put_nowait(replace(waiting, failures=waiting.failures + 1))
            return
        self.unverified[waiting.item] = error
        self._end(1)
        if len(self.unverified) > MAX_UNANSWERED:
            raise RunError(
                f"{len(self.unverified)} answers could not be verified in {ATTEMPTS} calls each, although the verifier "
                f"is up: {error}"
            )

    def _end(self, count: int) -> None:
        self._open -= count
        if count:
            self._changed.set()
            self.on_room()

    async def _wait_until(self, condition: Callable[[], bool]) -> None:
        while not condition():
            self._changed.clear()
            await self._changed.wait()
