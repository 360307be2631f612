"""The async client of the verifier."""

# ruff: noqa: ASYNC109  (a timeout here is a deadline that also travels on the wire)
import json
from collections.abc import AsyncGenerator, AsyncIterable, Callable, Iterable, Iterator, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from itertools import count

from google.protobuf.struct_pb2 import Struct
from vold_proto.v1 import verifier_pb2 as pb

from vold_client.base import AsyncClient, RequestStreams, new_request_id
from vold_client.concurrency import map_as_completed
from vold_client.errors import RETRYABLE, Internal, InvalidArgument, VoldError, from_status
from vold_client.keys import KEY_REFUSED, KeySource
from vold_client.methods import GET_VERIFIER_QUOTA, LIST_VERIFIERS, VERIFY, VERIFY_STREAM
from vold_client.replicas import Throttled
from vold_client.tls import Tls
from vold_client.transport import Transport
from vold_client.types import Item, Part, Verdict, VerifierInfo


@dataclass(frozen=True, slots=True)
class ItemBudget:
    """The limits of one Verify message."""

    bytes: int = 8 << 20
    items: int = 256


class AsyncVerifierClient(AsyncClient):
    """A client of a verifier service, or of several replicas of it, by URL.

    urls, timeout, retries, api_key, tls, run_id, throttled: as for AsyncTeacherClient. max_in_flight: concurrent items
    in one `verify_stream`. budget: limits of one message.
    """

    _quota_method = GET_VERIFIER_QUOTA

    def __init__(
        self,
        urls: str | Sequence[str],
        *,
        timeout: float = 60.0,
        retries: int = 4,
        api_key: KeySource = None,
        tls: Tls | None = None,
        run_id: str = "",
        max_in_flight: int = 256,
        budget: ItemBudget | None = None,
        throttled: Throttled | None = None,
    ) -> None:
        super().__init__(
            urls, timeout=timeout, retries=retries, api_key=api_key, tls=tls, run_id=run_id, throttled=throttled
        )
        self._max_in_flight = max_in_flight
        self._budget = budget or ItemBudget()

    async def list_verifiers(self, *, timeout: float | None = None) -> list[VerifierInfo]:
        """The service's verifiers, each with the JSON schema of its parameters."""
        reply, _ = await self._unary(LIST_VERIFIERS, pb.ListVerifiersRequest(), self._deadline(timeout))
        return [
            VerifierInfo(info.name, info.summary, json.loads(info.parameters_schema or "{}"), info.pool or "main")
            for info in reply.verifiers
        ]

    async def verify(self, items: Sequence[Item], *, timeout: float | None = None) -> list[Verdict]:
        """A verdict for every item, in the order of the items. The verdict of an item that failed has its `error` set.

        A large list is sent in parts. Raises VoldError if the whole call fails.
        """
        deadline = self._deadline(timeout)

        async def verify_part(part: tuple[int, pb.VerifyRequest]) -> tuple[int, list[Verdict]]:
            start, message = part
            reply, url = await self._unary(VERIFY, message, deadline)
            return start, _unpack_verdicts(reply, len(message.items), url)

        verdicts: dict[int, list[Verdict]] = {}
        parts = list(_split_items(items, self._budget, self._run_id))
        async with aclosing(map_as_completed(parts, verify_part, 4 * len(self._addresses))) as results:
            async for start, part_verdicts in results:
                verdicts[start] = part_verdicts
        return [verdict for start in sorted(verdicts) for verdict in verdicts[start]]

    async def verify_stream(
        self, items: Iterable[Item] | AsyncIterable[Item], *, timeout: float | None = None
    ) -> AsyncGenerator[Verdict, None]:
        """Verdicts in order of completion, matched by `id` (if empty, the item's index in the source).

        timeout: seconds for each item. Items are read as fast as verdicts are consumed; a plain iterator is read in a
        thread. The verdict of an item that failed has its `error` set; only exceptions of the iterator `items` are
        raised.
        """
        indices = count()
        async with RequestStreams(VERIFY_STREAM, "id", self._run_id) as streams:

            async def send(transport: Transport, message: pb.VerifyItem, seconds: float) -> pb.VerifyResult:
                return await streams.call(transport, message, seconds, lambda: send_alone(transport, message, seconds))

            async def send_alone(transport: Transport, message: pb.VerifyItem, seconds: float) -> pb.VerifyResult:
                request = pb.VerifyRequest(request_id=new_request_id(), items=[message], run_id=self._run_id)
                reply = await transport.unary(VERIFY, request, self._context(seconds, request.request_id))
                if len(reply.results) != 1:
                    raise Internal(f"{len(reply.results)} results came back for 1 item", url=transport.address.url)
                return reply.results[0]

            async def verify_item(item: Item) -> Verdict:
                index = next(indices)
                identifier = item.id or str(index)

                async def send_item(transport: Transport, seconds: float) -> Verdict:
                    # A new message for each attempt: the stream replaces an id that is in use.
                    result = await send(transport, _pack_item(item, identifier, index), seconds)
                    failure = from_status(result.error, transport.address.url)
                    if isinstance(failure, (*RETRYABLE, *KEY_REFUSED)):
                        raise failure
                    return _unpack_verdict(result, identifier, transport.address.url)

                try:
                    return await self._open().call(send_item, self._deadline(timeout))
                except VoldError as error:
                    return Verdict(identifier, error=error)

            async with aclosing(map_as_completed(items, verify_item, self._max_in_flight)) as verdicts:
                async for verdict in verdicts:
                    yield verdict


def _pack_item(
    item: Item, identifier: str, index: int, make: Callable[..., pb.VerifyItem] = pb.VerifyItem
) -> pb.VerifyItem:
    """The message of an item. make: creates the message, for example inside a request."""
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


def _split_items(items: Sequence[Item], budget: ItemBudget, run_id: str) -> Iterator[tuple[int, pb.VerifyRequest]]:
    """(index of the first item, request) of the requests that carry `items`.

    Each item is packed directly into its request: copying messages between requests would copy every text again.
    """
    start, size = 0, 0
    message = pb.VerifyRequest(request_id=new_request_id(), run_id=run_id)
    for index, item in enumerate(items):
        identifier = item.id or str(index)
        item_size = _pack_item(item, identifier, index, message.items.add).ByteSize()
        if index > start and (index - start == budget.items or size + item_size > budget.bytes):
            del message.items[-1]
            yield start, message
            start, size = index, 0
            message = pb.VerifyRequest(request_id=new_request_id(), run_id=run_id)
            _pack_item(item, identifier, index, message.items.add)
        size += item_size
    yield start, message


def _unpack_verdicts(reply: pb.VerifyReply, expected: int, url: str) -> list[Verdict]:
    if len(reply.results) != expected:
        raise Internal(f"{len(reply.results)} results came back for {expected} items", url=url)
    return [_unpack_verdict(result, result.id, url) for result in reply.results]


def _unpack_verdict(result: pb.VerifyResult, identifier: str, url: str) -> Verdict:
    return Verdict(
        id=identifier,
        reward=result.reward if result.HasField("reward") else None,
        correct=result.correct if result.HasField("correct") else None,
        extracted=result.extracted if result.HasField("extracted") else None,
        reason=result.reason,
        error=from_status(result.error, url),
        seconds=result.seconds,
        rule=result.rule,
        forgeable=result.forgeable,
        parts=tuple(
            Part(part.name, part.role, part.weight, _unpack_verdict(part.result, identifier, url))
            for part in result.parts
        ),
        cached=result.cached,
    )
