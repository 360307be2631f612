"""The transport interface, which gRPC and HTTP implement."""

# ruff: noqa: ASYNC109  (a timeout here is a deadline that also travels on the wire)
from collections.abc import AsyncGenerator
from dataclasses import dataclass
from typing import Protocol, TypeVar

from google.protobuf.message import Message
from vold_proto.distribution import VERSION

from vold_client.methods import Method, Reply, Request
from vold_client.urls import Address

USER_AGENT = f"vold-client/{VERSION}"
"""The user agent, on gRPC and on HTTP."""

RequestT = TypeVar("RequestT", bound=Message, contravariant=True)
ReplyT = TypeVar("ReplyT", bound=Message, covariant=True)


@dataclass(frozen=True, slots=True)
class CallContext:
    """The metadata of a request. timeout: seconds until the call's deadline."""

    timeout: float
    request_id: str = ""
    run_id: str = ""


class RequestStream(Protocol[RequestT, ReplyT]):
    """Requests and replies on one open bidirectional stream, each reply matched to its request by id."""

    async def call(self, message: RequestT, timeout: float) -> ReplyT:
        """Send `message` and return its reply. Replaces the id of a message if the id is in use on the stream."""
        ...

    @property
    def broken(self) -> bool:
        """Whether the stream has ended, so that a new one is needed."""
        ...

    @property
    def has_old_key(self) -> bool:
        """Whether the client's API key has changed since the stream was opened with it."""
        ...

    @property
    def lost_refusal(self) -> bool:
        """Whether the stream broke before its first reply, without a reason: the service may have refused it."""
        ...

    async def aclose(self) -> None: ...


class Transport(Protocol):
    """A connection to one replica. For every remote failure a method raises a VoldError."""

    address: Address

    async def unary(self, method: Method[Request, Reply], message: Request, context: CallContext) -> Reply: ...

    def stream(
        self, method: Method[Request, Reply], message: Request, context: CallContext
    ) -> AsyncGenerator[Reply, None]:
        """The replies of a server stream. Closing the iterator cancels the call."""
        ...

    def request_stream(
        self, method: Method[Request, Reply], id_field: str, run_id: str
    ) -> RequestStream[Request, Reply] | None:
        """A new bidirectional stream; None for HTTP. id_field: the messages' field with their id."""
        ...

    async def check_ready(self, timeout: float) -> None:
        """Return if the service accepts requests. Raises Unavailable if it does not yet."""
        ...

    async def aclose(self) -> None: ...
