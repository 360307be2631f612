"""The gRPC face's common part: calls, errors as statuses, and a server with health and reflection."""

import asyncio
import logging
from typing import NoReturn

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from vold_service.call import Call
from vold_service.errors import GRPC_STATUS, STATUS_METADATA, ServiceError, internal

REQUEST_ID_METADATA = "x-request-id"
RUN_ID_METADATA = "x-vold-run-id"

log = logging.getLogger("vold.grpc")


def call_of(context: grpc.aio.ServicerContext, request_id: str = "", run_id: str = "") -> Call:
    """The call's id, run and deadline: from the message where it names them, else from the metadata."""
    metadata = dict(context.invocation_metadata() or ())
    return Call.start(
        request_id or str(metadata.get(REQUEST_ID_METADATA, "")),
        run_id or str(metadata.get(RUN_ID_METADATA, "")),
        context.time_remaining(),
    )


async def abort(context: grpc.aio.ServicerContext, error: Exception) -> NoReturn:
    """End the call with the error's code and text; the whole Status goes along as trailing metadata."""
    if not isinstance(error, ServiceError):
        log.error("a call failed", exc_info=error)
        error = internal(error)
    await context.abort(
        GRPC_STATUS[error.code], error.message, ((STATUS_METADATA, error.status().SerializeToString()),)
    )
    raise AssertionError("abort does not return")


class GrpcServer:
    """A grpc.aio server with the standard health service and reflection.

    Add servicers to `server`, then `start`. Health says SERVING from `set_ready(True)` on.
    """

    def __init__(self, *, max_body_bytes: int, services: list[str]) -> None:
        self.server = grpc.aio.server(
            options=[
                ("grpc.max_receive_message_length", max_body_bytes),
                ("grpc.max_send_message_length", -1),
                ("grpc.so_reuseport", 0),
                # A client may ask whether this end is alive while a long call says nothing.
                ("grpc.http2.min_ping_interval_without_data_ms", 10_000),
            ]
        )
        self.services = ["", *services]
        self.health = health.aio.HealthServicer()  # type: ignore[attr-defined]
        health_pb2_grpc.add_HealthServicer_to_server(self.health, self.server)
        names = (*services, health.SERVICE_NAME, reflection.SERVICE_NAME)
        reflection.enable_server_reflection(names, self.server)

    async def start(self, address: str) -> str:
        """Listen on HOST:PORT or unix:PATH; returns the address with the port that was bound."""
        await self.set_ready(False)
        try:
            port = self.server.add_insecure_port(address)
        except RuntimeError as error:
            raise OSError(f"cannot listen on {address}: is it in use? ({error})") from error
        await self.server.start()
        return address if address.startswith("unix:") else f"{address.rpartition(':')[0]}:{port}"

    async def set_ready(self, ready: bool) -> None:
        state = health_pb2.HealthCheckResponse.SERVING if ready else health_pb2.HealthCheckResponse.NOT_SERVING
        await asyncio.gather(*(self.health.set(name, state) for name in self.services))

    async def stop(self, grace: float) -> None:
        await self.server.stop(grace)
