"""The verifier's rules, under both faces: which items are accepted, in which order results come, and when a call ends.

An item that cannot be verified gets an error and no reward; the other items of its request are still verified.
"""

import asyncio
import contextlib
import json
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping, Sequence
from functools import lru_cache
from typing import Any

from vold_proto.distribution import VERSION
from vold_proto.v1 import quota_pb2, status_pb2, verifier_pb2
from vold_service import access
from vold_service.call import Call
from vold_service.errors import MAX_NAME, Code, ServiceError, check_name, deadline_exceeded
from vold_service.processes import Processes
from vold_service.quota import Quotas
from vold_service.turns import Turn

from vold_verifier import metrics, registry
from vold_verifier.engine import light
from vold_verifier.engine.admission import check_count, check_item, estimate_tokens
from vold_verifier.engine.cache import ResultCache, item_key
from vold_verifier.engine.dispatch import Dispatcher
from vold_verifier.engine.forkclient import ForkServerProcess
from vold_verifier.settings import VerifierSettings
from vold_verifier.verifiers.base import Verifier

Results = list[verifier_pb2.VerifyResult | None]
IndexedVerifiers = list[tuple[int, Verifier[Any]]]
"""The index of an item in its request, and the item's verifier."""


class Engine:
    """Verifies items for both faces. Call `start` before use and `stop` after, on the event loop that serves."""

    def __init__(
        self,
        settings: VerifierSettings,
        processes: Processes | None = None,
        *,
        on_change: Callable[[], None] = lambda: None,
        launched: ForkServerProcess | None = None,
    ) -> None:
        """processes: for work that must not run on the event loop. on_change: called when `available` may have
        changed. launched: the fork server of the main pool, if it has been launched.
        """
        self.settings = settings
        self.processes = processes or Processes()
        self.verifiers = registry.load_configured(settings)
        self.server_version = VERSION
        self.quotas = Quotas(max_bytes=settings.max_tenant_bytes)
        self.cache = ResultCache(settings.cache_bytes, self.server_version)
        self.dispatcher = Dispatcher(settings, self.verifiers, on_change, launched)

    @property
    def available(self) -> bool:
        """Whether the workers are up."""
        return self.dispatcher.available

    @property
    def max_fields(self) -> int:
        """The most fields of a request in protobuf, with those of its items (vold_service.messages)."""
        return 64 * self.settings.max_items + 1024

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

    def get_quota(self, call: Call) -> quota_pb2.Quota:
        """The limits of the caller's tenant, and how much of them is used."""
        return self.quotas.quota(call.tenant)

    async def verify(
        self,
        call: Call,
        items: Sequence[verifier_pb2.VerifyItem],
        faults: Mapping[int, ServiceError] | None = None,
    ) -> verifier_pb2.VerifyReply:
        """Return results in the order of `items`. Raises ServiceError if the call as a whole cannot be served.

        faults: the errors, by index, of items that the face could not read.
        """
        started = time.monotonic()
        access.add_figures(items=len(items))
        check_count(len(items), self.settings.max_items)
        for index, item in enumerate(items):
            check_name(f"items[{index}].id", item.id)
        results: Results = [None] * len(items)
        accepted, duplicates = await self._accept(items, results, faults or {})
        if accepted:
            tokens = sum(estimate_tokens(items[index]) for index, _ in (*accepted, *duplicates))
            assert call.place is not None, "the face has opened no place for the call"
            with call.place.charging(tokens):
                pending = await self._verify_without_workers(call, items, accepted, results)
                if pending:
                    await self._verify_pending(call, items, pending, results)
            for index, first in duplicates:
                results[index] = self._copy_result(items, index, first, results[first])
        metrics.CALL_SECONDS.observe(time.monotonic() - started)
        return verifier_pb2.VerifyReply(
            request_id=call.request_id,
            results=[result for result in results if result is not None],
            server_version=self.server_version,
        )

    async def _accept(
        self,
        items: Sequence[verifier_pb2.VerifyItem],
        results: Results,
        faults: Mapping[int, ServiceError],
    ) -> tuple[IndexedVerifiers, list[tuple[int, int]]]:
        """Return the valid items without repetitions, and (index, index of the equal item) for each repetition.

        Sets `results` to an error for each invalid item.
        """
        accepted: IndexedVerifiers = []
        duplicates: list[tuple[int, int]] = []
        first_index: dict[bytes, int] = {}
        turn = Turn()
        for index, item in enumerate(items):
            if turn.is_over:
                await turn.pause()
            try:
                if index in faults:
                    raise faults[index]
                verifier = check_item(item, f"items[{index}].", self.verifiers, self.settings)
            except ServiceError as error:
                results[index] = self._error_result(item, error)
                continue
            first = first_index.setdefault(item_key(item), index)
            if first == index:
                accepted.append((index, verifier))
            else:
                duplicates.append((index, first))
        return accepted, duplicates

    async def _verify_without_workers(
        self,
        call: Call,
        items: Sequence[verifier_pb2.VerifyItem],
        accepted: IndexedVerifiers,
        results: Results,
    ) -> IndexedVerifiers:
        """Set `results` for the light and the cached items of `accepted`; return the rest of `accepted`."""
        if call.expired:
            raise deadline_exceeded()
        pending, turn = [], Turn()
        for index, verifier in accepted:
            if turn.is_over:  # by time: an item with a long prompt takes a hundred times that of a short one
                await turn.pause()
                if call.expired:
                    raise deadline_exceeded()
            result = self._light_or_cached(items[index], verifier, call.tenant.cache_owner)
            if result is None:
                pending.append((index, verifier))
            else:
                results[index] = self._complete(items[index], result, f"items[{index}].")
        return pending

    def _light_or_cached(
        self, item: verifier_pb2.VerifyItem, verifier: Verifier[Any], owner: str
    ) -> verifier_pb2.VerifyResult | None:
        """Return the item's result if no worker is needed for it. owner: of the item (Tenant.cache_owner)."""
        if light.is_light(verifier, item):
            metrics.LIGHT.inc()
            return light.verify(verifier, item)
        return self.cache.get(verifier, item_key(item), owner)

    def _copy_result(
        self,
        items: Sequence[verifier_pb2.VerifyItem],
        index: int,
        first: int,
        first_result: verifier_pb2.VerifyResult | None,
    ) -> verifier_pb2.VerifyResult:
        """Return the result of `items[index]`, which equals `items[first]`."""
        assert first_result is not None
        metrics.REPEATED.inc()
        result = verifier_pb2.VerifyResult()
        result.CopyFrom(first_result)
        result.seconds, result.cached = 0.0, not result.HasField("error")
        if result.HasField("error"):
            result.error.field = result.error.field.removeprefix(f"items[{first}].")
        return self._complete(items[index], result, f"items[{index}].")

    async def _verify_pending(
        self,
        call: Call,
        items: Sequence[verifier_pb2.VerifyItem],
        pending: IndexedVerifiers,
        results: Results,
    ) -> None:
        """Submit the pending items, and set `results` at their indices. Raises DEADLINE_EXCEEDED."""
        done = asyncio.Event()
        remaining = len(pending)
        verifiers = dict(pending)

        def on_result(index: int, result: verifier_pb2.VerifyResult) -> None:
            nonlocal remaining
            self.cache.put(verifiers[index], item_key(items[index]), call.tenant.cache_owner, result)
            results[index] = self._complete(items[index], result, f"items[{index}].")
            remaining -= 1
            if not remaining:
                done.set()

        if call.expired:
            raise deadline_exceeded()
        submission = self.dispatcher.open_submission(on_result, call.tenant)
        try:
            submission.check_capacity((items[index], verifier) for index, verifier in pending)
            turn = Turn()
            for index, verifier in pending:
                submission.add(index, items[index], verifier)
                await turn.pause()
            submission.dispatch()
            try:
                async with asyncio.timeout(call.remaining()):
                    await done.wait()
            except TimeoutError:
                raise deadline_exceeded(
                    f"the deadline passed with {remaining} of {len(items)} items not verified: "
                    "allow more time or send fewer"
                ) from None
        finally:
            submission.close()

    async def verify_stream(
        self, current_call: Callable[[], Call], items: AsyncIterator[verifier_pb2.VerifyItem]
    ) -> AsyncGenerator[verifier_pb2.VerifyResult, None]:
        """Yield a result for every item, as soon as the result is available. Reads at most `max_stream_items` ahead.

        current_call: returns the call with its tenant as of now; called at the start and for each item. If the tenant
        has no tokens left for an item, the item's result is RESOURCE_EXHAUSTED and the stream goes on.
        """
        call = current_call()
        results: asyncio.Queue[verifier_pb2.VerifyResult | None] = asyncio.Queue()
        window = asyncio.Semaphore(self.settings.max_stream_items)
        pending: dict[int, tuple[verifier_pb2.VerifyItem, Verifier[Any]]] = {}

        def on_result(key: int, result: verifier_pb2.VerifyResult) -> None:
            item, verifier = pending.pop(key)
            self.cache.put(verifier, item_key(item), call.tenant.cache_owner, result)
            results.put_nowait(self._complete(item, result, ""))

        submission = self.dispatcher.open_submission(on_result, call.tenant)

        async def read_items() -> int:
            """Return the number of items."""
            count = 0
            async for item in items:
                await window.acquire()
                await self.dispatcher.wait_for_room(call.tenant)
                try:
                    check_name("id", item.id)
                    verifier = check_item(item, "", self.verifiers, self.settings)
                    self._charge_item(current_call, item)
                except ServiceError as error:
                    results.put_nowait(self._error_result(item, error))
                else:
                    if (result := self._light_or_cached(item, verifier, call.tenant.cache_owner)) is not None:
                        results.put_nowait(self._complete(item, result, ""))
                    else:
                        pending[count] = (item, verifier)
                        submission.add(count, item, verifier)
                        submission.dispatch()
                count += 1
            return count

        yielded = 0
        with self.quotas.admit(call.tenant, 0, caller=call.request_id, remaining=call.remaining()):
            reader = asyncio.create_task(read_items())
            reader.add_done_callback(lambda _: results.put_nowait(None))
            try:
                while not reader.done() or yielded < reader.result():
                    async with asyncio.timeout(call.remaining()):
                        result = await results.get()
                    if result is not None:
                        yielded += 1
                        window.release()
                        yield result
            except TimeoutError:
                message = f"the deadline passed after {yielded} results: allow more time or send fewer"
                raise deadline_exceeded(message) from None
            finally:
                submission.close()
                reader.cancel()
                with contextlib.suppress(asyncio.CancelledError, ServiceError):
                    await reader

    def _charge_item(self, current_call: Callable[[], Call], item: verifier_pb2.VerifyItem) -> None:
        """Charge an item of a stream to its tenant. Raises ServiceError if the key or the quota refuses the item."""
        try:
            call = current_call()
            caller = f"{call.request_id}/{item.id}" if item.id else ""
            self.quotas.charge(call.tenant, estimate_tokens(item), caller=caller, remaining=call.remaining())
        except ServiceError as error:
            access.count_refusal(error)
            raise

    def _error_result(self, item: verifier_pb2.VerifyItem, error: ServiceError) -> verifier_pb2.VerifyResult:
        return self._complete(item, verifier_pb2.VerifyResult(error=error.status()), "")

    def _complete(
        self, item: verifier_pb2.VerifyItem, result: verifier_pb2.VerifyResult, path: str
    ) -> verifier_pb2.VerifyResult:
        """Set the id of `result`, prefix the field of its error with `path`, and count the result in the metrics."""
        result.id = item.id[:MAX_NAME]
        if result.HasField("error"):
            outcome = Code.Name(result.error.code)
            if item.zero_on_failure and _completion_at_fault(result.error):
                result.reward = 0.0
            if result.error.field:
                result.error.field = path + result.error.field
        else:
            outcome = "correct" if result.correct else "wrong"
        name = item.verifier if item.verifier in self.verifiers else "unknown"
        _outcome_counter(name, outcome).inc()
        if not result.cached:
            _seconds_histogram(name).observe(result.seconds)
        return result


def _completion_at_fault(error: status_pb2.Status) -> bool:
    """Whether the completion caused the error: too long, past a limit, a crash of its worker, or a hit tripwire."""
    if error.code == status_pb2.INVALID_ARGUMENT:
        return error.field.rpartition(".")[2] == "completion"
    return error.code in (status_pb2.DEADLINE_EXCEEDED, status_pb2.INTERNAL, status_pb2.PERMISSION_DENIED)


@lru_cache(maxsize=1024)
def _outcome_counter(verifier: str, outcome: str) -> Any:
    return metrics.ITEMS.labels(verifier, outcome)


@lru_cache(maxsize=256)
def _seconds_histogram(verifier: str) -> Any:
    return metrics.ITEM_SECONDS.labels(verifier)
