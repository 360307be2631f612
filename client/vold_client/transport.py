"""What the client needs of a wire. gRPC and HTTP each fill it in."""

# ruff: noqa: ASYNC109  (a timeout here is a deadline that also travels on the wire)
from collections.abc import AsyncGenerator
from dataclasses import dataclass
from typing import Protocol, TypeVar

from google.protobuf.message import Message
from vold_proto.distribution import VERSION

from vold_client.methods import Method, Reply, Request
from vold_client.urls import Address

USER_AGENT = f"vold-client/{VERSION}"
"""What a service, and what stands in front of it, sees of the client on either wire."""

Asked = TypeVar("Asked", bound=Message, contravariant=True)
Answered = TypeVar("Answered", bound=Message, covariant=True)


@dataclass(frozen=True, slots=True)
class CallContext:
    """What goes along with a request. timeout: seconds that are left of the call's deadline."""

    timeout: float
    request_id: str = ""
    run_id: str = ""


class Exchange(Protocol[Asked, Answered]):
    """Many requests and replies over one open stream, each reply matched to its request by id."""

    async def ask(self, message: Asked, timeout: float) -> Answered:
        """The reply to `message`, whose id is made unique on the stream where it is not."""
        ...

    @property
    def broken(self) -> bool:
        """Whether the stream has ended, so that another one must be opened."""
        ...

    async def aclose(self) -> None: ...


class Transport(Protocol):
    """A connection to one replica. Every method raises VoldError and nothing else for what goes wrong remotely."""

    address: Address

    async def unary(self, method: Method[Request, Reply], message: Request, context: CallContext) -> Reply: ...

    def stream(
        self, method: Method[Request, Reply], message: Request, context: CallContext
    ) -> AsyncGenerator[Reply, None]:
        """The events of a server stream. Closing the iterator cancels the call."""
        ...

    def exchange(self, method: Method[Request, Reply], key: str, run_id: str) -> Exchange[Request, Reply] | None:
        """A bidirectional stream whose messages carry their id in the field `key`; None where the wire has none."""
        ...

    async def check_ready(self, timeout: float) -> None:
        """Return where the service says that it takes work; raises Unavailable where it does not yet."""
        ...

    async def aclose(self) -> None: ...
