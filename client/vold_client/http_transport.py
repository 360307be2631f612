"""The transport over HTTP, with protobuf bodies."""

# ruff: noqa: ASYNC109  (a timeout here is a deadline that also travels on the wire)
import asyncio
from collections.abc import AsyncGenerator

import httpx
from google.protobuf.json_format import MessageToDict
from google.protobuf.message import DecodeError, Message

from vold_client import tracing
from vold_client.errors import (
    Internal,
    NotFound,
    Unavailable,
    VoldError,
    connection_error,
    deadline_exceeded,
    from_http,
)
from vold_client.framing import FrameDecoder
from vold_client.keys import ApiKey
from vold_client.methods import Method, Reply, Request
from vold_client.tls import Tls
from vold_client.transport import USER_AGENT, CallContext
from vold_client.urls import Address

PROTOBUF = "application/x-protobuf"


class HttpTransport:
    """One connection pool to one replica. Created in the event loop that uses it."""

    def __init__(self, address: Address, api_key: ApiKey, tls: Tls) -> None:
        self.address = address
        self._api_key = api_key
        # The deadline covers the whole call. Connecting has its own limit of 10 s, so that a host that does not answer
        # leaves time for a retry.
        self._client = httpx.AsyncClient(
            base_url=address.target,
            verify=tls.ssl_context() if address.tls else False,  # creating a context is slow, and plain text needs none
            headers={"accept": PROTOBUF, "user-agent": USER_AGENT},
            timeout=httpx.Timeout(None, connect=10.0),
            limits=httpx.Limits(max_connections=None, max_keepalive_connections=32),
        )

    async def unary(self, method: Method[Request, Reply], message: Request, context: CallContext) -> Reply:
        try:
            async with asyncio.timeout(context.timeout):
                response = await self._client.send(self._build_request(method, message, context))
        except TimeoutError:
            raise deadline_exceeded(self.address.url) from None
        except httpx.TransportError as error:
            raise self._connection_error(error) from None
        self._raise_for_status(response)
        return self._decode(method, response.content)

    async def stream(
        self, method: Method[Request, Reply], message: Request, context: CallContext
    ) -> AsyncGenerator[Reply, None]:
        deadline = asyncio.get_running_loop().time() + context.timeout
        request = self._build_request(method, message, context)
        response: httpx.Response | None = None
        frames = FrameDecoder()
        try:
            async with asyncio.timeout_at(deadline):
                response = await self._client.send(request, stream=True)
                if not response.is_success:
                    await response.aread()
            self._raise_for_status(response)
            chunks = response.aiter_bytes()
            while True:
                async with asyncio.timeout_at(deadline):
                    chunk = await anext(chunks, None)
                if chunk is None:
                    break
                try:
                    events = [self._decode(method, frame) for frame in frames.feed(chunk)]
                except ValueError as error:
                    raise Internal(str(error), url=self.address.url) from None
                for event in events:
                    yield event
            if frames.incomplete:
                raise Unavailable("the service broke off in the middle of a message", url=self.address.url)
        except TimeoutError:
            raise deadline_exceeded(self.address.url) from None
        except httpx.TransportError as error:
            raise self._connection_error(error) from None
        finally:
            if response is not None:
                await response.aclose()

    def request_stream(self, method: Method[Request, Reply], id_field: str, run_id: str) -> None:
        """HTTP has no bidirectional stream."""

    async def check_ready(self, timeout: float) -> None:
        try:
            async with asyncio.timeout(timeout):
                response = await self._client.get("/readyz", headers=self._key_header())
        except TimeoutError:
            raise deadline_exceeded(self.address.url) from None
        except httpx.TransportError as error:
            raise self._connection_error(error) from None
        if response.status_code == 404:
            raise NotFound("answers, but has no /readyz: is it a vold service?", url=self.address.url)
        self._raise_for_status(response)

    async def aclose(self) -> None:
        await self._client.aclose()

    def _build_request(self, method: Method[Request, Reply], message: Message, context: CallContext) -> httpx.Request:
        headers = {"x-vold-timeout-seconds": f"{context.timeout:.3f}"} | tracing.headers() | self._key_header()
        if context.request_id:
            headers["x-request-id"] = context.request_id
        if context.run_id:
            headers["x-vold-run-id"] = context.run_id
        if method.verb == "GET":
            params = MessageToDict(message, preserving_proto_field_name=True)
            return self._client.build_request("GET", method.route, params=params, headers=headers)
        headers["content-type"] = PROTOBUF
        return self._client.build_request(
            method.verb, method.route, content=message.SerializeToString(), headers=headers
        )

    def _key_header(self) -> dict[str, str]:
        header = self._api_key.header
        return {"authorization": header} if header else {}

    def _raise_for_status(self, response: httpx.Response) -> None:
        if not response.is_success:
            content_type, retry_after = (response.headers.get(name, "") for name in ("content-type", "retry-after"))
            raise from_http(response.status_code, content_type, response.content, self.address.url, retry_after)

    def _decode(self, method: Method[Request, Reply], data: bytes) -> Reply:
        try:
            return method.reply.FromString(data)
        except DecodeError as error:
            name = method.reply.DESCRIPTOR.full_name
            raise Internal(f"the reply is not a {name}: {error}", url=self.address.url) from None

    def _connection_error(self, error: httpx.TransportError) -> VoldError:
        return connection_error(str(error) or type(error).__name__, self.address.url)
