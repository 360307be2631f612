"""The verifier's client, async."""

# ruff: noqa: ASYNC109  (a timeout here is a deadline that also travels on the wire)
import json
from collections.abc import AsyncGenerator, AsyncIterable, Callable, Iterable, Iterator, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from itertools import count

from google.protobuf.struct_pb2 import Struct
from vold_proto.v1 import verifier_pb2 as pb

from vold_client.base import AsyncClient, Exchanges, new_request_id
from vold_client.concurrency import map_as_ready
from vold_client.errors import RETRIED, Internal, InvalidArgument, VoldError, from_status
from vold_client.methods import LIST_VERIFIERS, VERIFY, VERIFY_STREAM
from vold_client.tls import Tls
from vold_client.transport import Transport
from vold_client.types import Item, Part, Verdict, VerifierInfo


@dataclass(frozen=True, slots=True)
class ItemBudget:
    """What one Verify message may hold."""

    bytes: int = 8 << 20
    items: int = 256


class AsyncVerifierClient(AsyncClient):
    """A verifier service, or several replicas of one, by URL.

    urls, timeout, retries, api_key, tls, run_id: as for AsyncTeacherClient. max_in_flight: items under way at once in
    one `verify_stream`.
    """

    def __init__(
        self,
        urls: str | Sequence[str],
        *,
        timeout: float = 60.0,
        retries: int = 4,
        api_key: str | None = None,
        tls: Tls | None = None,
        run_id: str = "",
        max_in_flight: int = 256,
        budget: ItemBudget | None = None,
    ) -> None:
        super().__init__(urls, timeout=timeout, retries=retries, api_key=api_key, tls=tls, run_id=run_id)
        self._max_in_flight = max_in_flight
        self._budget = budget or ItemBudget()

    async def list_verifiers(self, *, timeout: float | None = None) -> list[VerifierInfo]:
        """The verifiers that the service knows, with the JSON schema of each one's parameters."""
        reply, _ = await self._unary(LIST_VERIFIERS, pb.ListVerifiersRequest(), self._deadline(timeout))
        return [
            VerifierInfo(info.name, info.summary, json.loads(info.parameters_schema or "{}"), info.pool or "main")
            for info in reply.verifiers
        ]

    async def verify(self, items: Sequence[Item], *, timeout: float | None = None) -> list[Verdict]:
        """A verdict for every item, in order. An item that could not be judged carries its own `error`.

        A large list is sent in parts and joined again. Raises VoldError where the whole call fails.
        """
        deadline = self._deadline(timeout)

        async def one(part: tuple[int, pb.VerifyRequest]) -> tuple[int, list[Verdict]]:
            start, message = part
            reply, url = await self._unary(VERIFY, message, deadline)
            return start, _verdicts(reply, len(message.items), url)

        verdicts: dict[int, list[Verdict]] = {}
        requests = list(_requests(items, self._budget, self._run_id))
        async with aclosing(map_as_ready(requests, one, 4 * len(self._addresses))) as results:
            async for start, judged in results:
                verdicts[start] = judged
        return [verdict for start in sorted(verdicts) for verdict in verdicts[start]]

    async def verify_stream(
        self, items: Iterable[Item] | AsyncIterable[Item], *, timeout: float | None = None
    ) -> AsyncGenerator[Verdict, None]:
        """Verdicts as they are ready, out of order, matched by `id` (where empty: the item's place in the source).

        timeout: seconds for each item. Items are read as fast as verdicts are consumed; a plain iterator is read in a
        thread. Whatever keeps an item from its verdict is that verdict's `error`; only the source's own exceptions are
        raised.
        """
        places = count()
        async with Exchanges(VERIFY_STREAM, "id", self._run_id) as exchanges:

            async def judge(transport: Transport, message: pb.VerifyItem, seconds: float) -> pb.VerifyResult:
                exchange = await exchanges.to(transport)
                if exchange is not None:
                    return await exchange.ask(message, seconds)
                request = pb.VerifyRequest(request_id=new_request_id(), items=[message], run_id=self._run_id)
                reply = await transport.unary(VERIFY, request, self._context(seconds, request.request_id))
                if len(reply.results) != 1:
                    raise Internal(f"{len(reply.results)} results came back for 1 item", url=transport.address.url)
                return reply.results[0]

            async def one(item: Item) -> Verdict:
                place = next(places)
                identifier = item.id or str(place)

                async def work(transport: Transport, seconds: float) -> Verdict:
                    # A copy: the stream may have to rename a message whose id is taken.
                    result = await judge(transport, _pack(item, identifier, place), seconds)
                    failure = from_status(result.error, transport.address.url)
                    if isinstance(failure, RETRIED):
                        raise failure
                    return _verdict(result, identifier, transport.address.url)

                try:
                    return await self._open().call(work, self._deadline(timeout))
                except VoldError as error:
                    return Verdict(identifier, error=error)

            async with aclosing(map_as_ready(items, one, self._max_in_flight)) as verdicts:
                async for verdict in verdicts:
                    yield verdict


def _pack(item: Item, identifier: str, index: int, make: Callable[..., pb.VerifyItem] = pb.VerifyItem) -> pb.VerifyItem:
    try:
        parameters = None
        if item.parameters:
            parameters = Struct()
            parameters.update(dict(item.parameters))
        return make(
            id=identifier,
            verifier=item.verifier,
            completion=item.completion,
            reference=item.reference,
            prompt=item.prompt,
            parameters=parameters,
            zero_on_failure=item.zero_on_failure,
        )
    except (ValueError, TypeError) as error:
        raise InvalidArgument(
            f"items[{index}] cannot be sent ({error}): its texts must be str and its parameters JSON values",
            field=f"items[{index}]",
        ) from None


def _requests(items: Sequence[Item], budget: ItemBudget, run_id: str) -> Iterator[tuple[int, pb.VerifyRequest]]:
    """(index of its first item, message) of the messages that carry `items`. Each item is written where it is sent
    from: a message is not filled from others, which would copy every text once more."""
    start, size = 0, 0
    message = pb.VerifyRequest(request_id=new_request_id(), run_id=run_id)
    for index, item in enumerate(items):
        identifier = item.id or str(index)
        own = _pack(item, identifier, index, message.items.add).ByteSize()
        if index > start and (index - start == budget.items or size + own > budget.bytes):
            del message.items[-1]
            yield start, message
            start, size = index, 0
            message = pb.VerifyRequest(request_id=new_request_id(), run_id=run_id)
            _pack(item, identifier, index, message.items.add)
        size += own
    yield start, message


def _verdicts(reply: pb.VerifyReply, expected: int, url: str) -> list[Verdict]:
    if len(reply.results) != expected:
        raise Internal(f"{len(reply.results)} results came back for {expected} items", url=url)
    return [_verdict(result, result.id, url) for result in reply.results]


def _verdict(result: pb.VerifyResult, identifier: str, url: str) -> Verdict:
    return Verdict(
        id=identifier,
        reward=result.reward if result.HasField("reward") else None,
        correct=result.correct if result.HasField("correct") else None,
        extracted=result.extracted if result.HasField("extracted") else None,
        reason=result.reason,
        error=from_status(result.error, url),
        seconds=result.seconds,
        rule=result.rule,
        parts=tuple(
            Part(part.name, part.role, part.weight, _verdict(part.result, identifier, url)) for part in result.parts
        ),
        cached=result.cached,
    )
