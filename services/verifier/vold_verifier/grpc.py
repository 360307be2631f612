"""The gRPC face: vold.v1.VerifierService over the engine."""

from collections.abc import AsyncIterator
from contextlib import aclosing
from functools import partial
from typing import Any

import grpc
from vold_proto.v1 import quota_pb2, verifier_pb2, verifier_pb2_grpc
from vold_service.grpc import GrpcServer, abort, parse_call
from vold_service.keys import Keys
from vold_service.messages import parse_message
from vold_service.tls import Tls

from vold_verifier.engine.engine import Engine

SERVICE = verifier_pb2.DESCRIPTOR.services_by_name["VerifierService"].full_name


class VerifierServicer(verifier_pb2_grpc.VerifierServiceServicer):
    def __init__(self, engine: Engine) -> None:
        self.engine = engine

    async def ListVerifiers(  # noqa: N802
        self, request: verifier_pb2.ListVerifiersRequest, context: "grpc.aio.ServicerContext[Any, Any]"
    ) -> verifier_pb2.ListVerifiersReply:
        return self.engine.list_verifiers()

    async def GetQuota(  # noqa: N802
        self, request: quota_pb2.GetQuotaRequest, context: "grpc.aio.ServicerContext[Any, Any]"
    ) -> quota_pb2.Quota:
        try:
            return self.engine.get_quota(parse_call(context))
        except Exception as error:
            await abort(context, error)

    async def Verify(  # noqa: N802
        self, request: verifier_pb2.VerifyRequest, context: "grpc.aio.ServicerContext[Any, Any]"
    ) -> verifier_pb2.VerifyReply:
        try:
            return await self.engine.verify(parse_call(context, request.request_id, request.run_id), request.items)
        except Exception as error:
            await abort(context, error)

    async def VerifyStream(  # type: ignore[override]  # noqa: N802
        self, request_iterator: AsyncIterator[bytes], context: "grpc.aio.ServicerContext[Any, Any]"
    ) -> AsyncIterator[verifier_pb2.VerifyResult]:
        try:
            # The call is parsed again for each item: the key may expire during the stream.
            current_call = partial(parse_call, context)
            async with aclosing(self.engine.verify_stream(current_call, self._items(request_iterator))) as results:
                async for result in results:
                    yield result
        except Exception as error:
            await abort(context, error)

    async def _items(self, requests: AsyncIterator[bytes]) -> AsyncIterator[verifier_pb2.VerifyItem]:
        async for data in requests:
            yield await parse_message(verifier_pb2.VerifyItem, data, self.engine.max_fields)


def make_server(
    engine: Engine, *, max_body_bytes: int, keys: Keys, tls: Tls | None, idle_seconds: float = 30.0
) -> GrpcServer:
    server = GrpcServer(
        max_body_bytes=max_body_bytes,
        services=[SERVICE],
        quotas=engine.quotas,
        placed=frozenset({"Verify"}),
        max_fields=engine.max_fields,
        keys=keys,
        tls=tls,
        idle_seconds=idle_seconds,
    )
    verifier_pb2_grpc.add_VerifierServiceServicer_to_server(VerifierServicer(engine), server.server)
    return server
