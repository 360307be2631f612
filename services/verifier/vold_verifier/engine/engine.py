"""The verifier's rules, under both faces: which items are served, in what order results come, what ends a call.

An item that cannot be judged gets an error and no reward; the others of its request are judged all the same.
"""

import asyncio
import contextlib
import json
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from functools import lru_cache
from typing import Any

from pydantic import ValidationError
from vold_proto.distribution import VERSION
from vold_proto.v1 import status_pb2, verifier_pb2
from vold_service import access
from vold_service.call import Call
from vold_service.errors import Code, ServiceError, invalid, too_late
from vold_service.quota import Quotas

from vold_verifier import metrics, registry
from vold_verifier.engine import light
from vold_verifier.engine.cache import ResultCache, key_of
from vold_verifier.engine.composite import field_of, part_items
from vold_verifier.engine.dispatch import Dispatcher
from vold_verifier.engine.worker import first_error, read_parameters
from vold_verifier.reading.bounds import parameters_fault
from vold_verifier.settings import VerifierSettings
from vold_verifier.verifiers.base import Verifier
from vold_verifier.verifiers.composite import CompositeParameters

CHARACTERS_PER_TOKEN = 4
LIGHT_ITEMS_AT_A_TIME = 64
"""Judged on the event loop, some 2 ms, before others have their turn."""

Results = list[verifier_pb2.VerifyResult | None]


class Engine:
    """Start it before use and stop it after, on the event loop that serves."""

    def __init__(self, settings: VerifierSettings) -> None:
        self.settings = settings
        self.verifiers = registry.configured(settings)
        self.server_version = VERSION
        self.quotas = Quotas()
        self.cache = ResultCache(settings.cache_bytes, self.server_version)
        self.dispatcher = Dispatcher(settings, self.verifiers)

    async def start(self) -> None:
        await self.dispatcher.start()

    async def stop(self) -> None:
        await self.dispatcher.stop()

    def list_verifiers(self) -> verifier_pb2.ListVerifiersReply:
        return verifier_pb2.ListVerifiersReply(
            verifiers=[
                verifier_pb2.VerifierInfo(
                    name=verifier.name,
                    summary=verifier.summary,
                    parameters_schema=json.dumps(verifier.parameters.model_json_schema()),
                    pool=verifier.pool,
                )
                for verifier in self.verifiers.values()
            ],
            server_version=self.server_version,
            time_limit_seconds=self.settings.time_limit,
            sandbox_layers=self.dispatcher.sandbox.layers,
        )

    async def verify(self, call: Call, items: Sequence[verifier_pb2.VerifyItem]) -> verifier_pb2.VerifyReply:
        """Results in the order of `items`. Raises ServiceError where the call as a whole cannot be served."""
        started = time.monotonic()
        access.note(items=len(items))
        if len(items) > self.settings.max_items:
            raise invalid(
                "items", f"the request has {len(items)} items, over the limit of {self.settings.max_items}: send fewer"
            )
        results: Results = [None] * len(items)
        keys: dict[bytes, int] = {}
        repeated: list[tuple[int, int]] = []
        accepted: list[tuple[int, Verifier[Any]]] = []
        for index, item in enumerate(items):
            try:
                verifier = self._admit(item, f"items[{index}].")
            except ServiceError as error:
                results[index] = self._refused(item, error)
                continue
            first = keys.setdefault(key_of(item), index)
            if first == index:
                accepted.append((index, verifier))
            else:
                repeated.append((index, first))
        if accepted:
            tokens = sum(tokens_of(items[index]) for index, _ in (*accepted, *repeated))
            with self.quotas.admit(call.tenant, tokens):
                waiting = await self._at_once(call, items, accepted, results)
                if waiting:
                    await self._judge(call, items, waiting, results)
            for index, first in repeated:
                results[index] = self._repeated(items, index, first, results[first])
        metrics.CALL_SECONDS.observe(time.monotonic() - started)
        return verifier_pb2.VerifyReply(
            request_id=call.request_id,
            results=[r for r in results if r is not None],
            server_version=self.server_version,
        )

    async def _at_once(
        self,
        call: Call,
        items: Sequence[verifier_pb2.VerifyItem],
        accepted: Sequence[tuple[int, Verifier[Any]]],
        results: Results,
    ) -> list[tuple[int, Verifier[Any]]]:
        """Fill `results` where no worker is needed; returns the others of `accepted`."""
        waiting = []
        for number, (index, verifier) in enumerate(accepted):
            if number % LIGHT_ITEMS_AT_A_TIME == 0:
                await asyncio.sleep(0)
                if call.expired:
                    raise too_late()
            result = self._without_worker(items[index], verifier)
            if result is None:
                waiting.append((index, verifier))
            else:
                results[index] = self._labelled(items[index], result, f"items[{index}].")
        return waiting

    def _without_worker(
        self, item: verifier_pb2.VerifyItem, verifier: Verifier[Any]
    ) -> verifier_pb2.VerifyResult | None:
        if light.is_light(verifier, item):
            metrics.LIGHT.inc()
            return light.judge(verifier, item)
        return self.cache.get(verifier, key_of(item))

    def _repeated(
        self, items: Sequence[verifier_pb2.VerifyItem], index: int, first: int, found: verifier_pb2.VerifyResult | None
    ) -> verifier_pb2.VerifyResult:
        """The result of `items[first]` for `items[index]`, which is the same."""
        assert found is not None
        metrics.REPEATED.inc()
        result = verifier_pb2.VerifyResult()
        result.CopyFrom(found)
        result.seconds, result.cached = 0.0, not result.HasField("error")
        if result.HasField("error"):
            result.error.field = result.error.field.removeprefix(f"items[{first}].")
        return self._labelled(items[index], result, f"items[{index}].")

    async def _judge(
        self,
        call: Call,
        items: Sequence[verifier_pb2.VerifyItem],
        accepted: Sequence[tuple[int, Verifier[Any]]],
        results: Results,
    ) -> None:
        """Fill `results` at the accepted indices."""
        done = asyncio.Event()
        left = len(accepted)
        verifiers = dict(accepted)

        def deliver(index: int, result: verifier_pb2.VerifyResult) -> None:
            nonlocal left
            self.cache.put(verifiers[index], key_of(items[index]), result)
            results[index] = self._labelled(items[index], result, f"items[{index}].")
            left -= 1
            if not left:
                done.set()

        if call.expired:
            raise too_late()
        desk = self.dispatcher.desk(deliver)
        try:
            desk.reserve((items[index], verifier) for index, verifier in accepted)
            for index, verifier in accepted:
                desk.put(index, items[index], verifier)
            desk.feed()
            try:
                async with asyncio.timeout(call.remaining()):
                    await done.wait()
            except TimeoutError:
                raise too_late(
                    f"the deadline passed with {left} of {len(items)} items not judged: allow more time or send fewer"
                ) from None
        finally:
            desk.close()

    async def verify_stream(
        self, calls: Callable[[], Call], items: AsyncIterator[verifier_pb2.VerifyItem]
    ) -> AsyncGenerator[verifier_pb2.VerifyResult, None]:
        """A result for every item, each as soon as it is there. Reads ahead no further than `max_stream_items`.

        calls: the call as it stands now; asked for at the start and with each item. An item that its tenant has no
        tokens for has RESOURCE_EXHAUSTED for its result; the stream goes on.
        """
        call = calls()
        results: asyncio.Queue[verifier_pb2.VerifyResult | None] = asyncio.Queue()
        window = asyncio.Semaphore(self.settings.max_stream_items)
        open_items: dict[int, tuple[verifier_pb2.VerifyItem, Verifier[Any]]] = {}

        def deliver(key: int, result: verifier_pb2.VerifyResult) -> None:
            item, verifier = open_items.pop(key)
            self.cache.put(verifier, key_of(item), result)
            results.put_nowait(self._labelled(item, result, ""))

        desk = self.dispatcher.desk(deliver)

        async def read() -> int:
            count = 0
            async for item in items:
                await window.acquire()
                await self.dispatcher.room()
                try:
                    verifier = self._admit(item, "")
                    self.quotas.charge(calls().tenant, tokens_of(item))
                except ServiceError as error:
                    results.put_nowait(self._refused(item, error))
                else:
                    if (result := self._without_worker(item, verifier)) is not None:
                        results.put_nowait(self._labelled(item, result, ""))
                    else:
                        open_items[count] = (item, verifier)
                        desk.put(count, item, verifier)
                        desk.feed()
                count += 1
            return count

        answered = 0
        with self.quotas.admit(call.tenant, 0):
            reader = asyncio.create_task(read())
            reader.add_done_callback(lambda _: results.put_nowait(None))
            try:
                while not reader.done() or answered < reader.result():
                    async with asyncio.timeout(call.remaining()):
                        result = await results.get()
                    if result is not None:
                        answered += 1
                        window.release()
                        yield result
            except TimeoutError:
                message = f"the deadline passed after {answered} results: allow more time or send fewer"
                raise too_late(message) from None
            finally:
                desk.close()
                reader.cancel()
                with contextlib.suppress(asyncio.CancelledError, ServiceError):
                    await reader

    def _admit(self, item: verifier_pb2.VerifyItem, path: str) -> Verifier[Any]:
        """The item's verifier. Raises ServiceError for what can be told without looking at the answer."""
        verifier = registry.look_up(self.verifiers, item.verifier, path + "verifier")
        for name, text, limit in (
            ("completion", item.completion, self.settings.max_completion_chars),
            ("prompt", item.prompt, self.settings.max_completion_chars),
            ("reference", item.reference, self.settings.max_reference_chars),
        ):
            if len(text) > limit:
                raise invalid(
                    path + name, f"{path}{name} has {len(text):,} characters, over the limit of {limit:,}: shorten it"
                )
        if item.HasField("parameters") or verifier.name == "composite":
            if fault := parameters_fault(item.parameters, self.settings.max_parameters_bytes):
                raise invalid(path + "parameters", f"{path}parameters: {fault}")
            try:
                parameters = read_parameters(verifier, item.parameters)
            except ValidationError as error:
                field, message = first_error(error)
                raise invalid(path + field, f"{path}{message}") from None
            if isinstance(parameters, CompositeParameters):
                for number, part in enumerate(part_items(item, parameters)):
                    self._admit(part, f"{path}{field_of(parameters, number)}.")
        return verifier

    def _refused(self, item: verifier_pb2.VerifyItem, error: ServiceError) -> verifier_pb2.VerifyResult:
        return self._labelled(item, verifier_pb2.VerifyResult(error=error.status()), "")

    def _labelled(
        self, item: verifier_pb2.VerifyItem, result: verifier_pb2.VerifyResult, path: str
    ) -> verifier_pb2.VerifyResult:
        """`result` with the item's id and the path of a field at fault, counted in the metrics."""
        result.id = item.id
        if result.HasField("error"):
            outcome = Code.Name(result.error.code)
            if item.zero_on_failure and _of_the_completion(result.error):
                result.reward = 0.0
            if result.error.field:
                result.error.field = path + result.error.field
        else:
            outcome = "correct" if result.correct else "wrong"
        name = item.verifier if item.verifier in self.verifiers else "unknown"
        _count(name, outcome).inc()
        if not result.cached:
            _seconds(name).observe(result.seconds)
        return result


def tokens_of(item: verifier_pb2.VerifyItem) -> int:
    """What an item counts for in its tenant's tokens a minute. There is no tokenizer here: 4 characters are a token."""
    return -(-(len(item.completion) + len(item.prompt) + len(item.reference)) // CHARACTERS_PER_TOKEN)


def _of_the_completion(error: status_pb2.Status) -> bool:
    """Whether it was the completion that kept its verdict from coming: too long, past a limit, a crash."""
    if error.code == status_pb2.INVALID_ARGUMENT:
        return error.field.rpartition(".")[2] == "completion"
    return error.code in (status_pb2.DEADLINE_EXCEEDED, status_pb2.INTERNAL, status_pb2.PERMISSION_DENIED)


@lru_cache(maxsize=1024)
def _count(verifier: str, outcome: str) -> Any:
    return metrics.ITEMS.labels(verifier, outcome)


@lru_cache(maxsize=256)
def _seconds(verifier: str) -> Any:
    return metrics.ITEM_SECONDS.labels(verifier)
