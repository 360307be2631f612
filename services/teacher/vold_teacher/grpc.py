"""The gRPC face: it only translates."""

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import aclosing

import grpc
from google.protobuf.message import DecodeError
from vold_proto.v1 import quota_pb2, teacher_pb2_grpc
from vold_proto.v1 import teacher_pb2 as pb
from vold_service.access import record_request
from vold_service.call import Call
from vold_service.errors import ServiceError, internal, invalid
from vold_service.grpc import abort, parse_call, text_metadata

from vold_teacher.metrics import count_request
from vold_teacher.service import Teacher

log = logging.getLogger("vold.teacher.grpc")

SERVICE_NAME = "vold.v1.TeacherService"
MAX_STREAM_REQUESTS = 64
"""Requests of one ScoreStream under way at once; a reply makes room for the next request."""


class TeacherServicer(teacher_pb2_grpc.TeacherServiceServicer):
    def __init__(self, teacher: Teacher) -> None:
        self.teacher = teacher

    async def GetInfo(self, request: pb.GetInfoRequest, context: grpc.aio.ServicerContext) -> pb.TeacherInfo:  # noqa: N802
        try:
            with count_request("grpc", "GetInfo"):
                return self.teacher.get_info(request)
        except Exception as error:
            await abort(context, error)

    async def GetUsage(self, request: pb.GetUsageRequest, context: grpc.aio.ServicerContext) -> pb.UsageReply:  # noqa: N802
        try:
            with count_request("grpc", "GetUsage"):
                return self.teacher.get_usage(request, parse_call(context))
        except Exception as error:
            await abort(context, error)

    async def GetQuota(self, request: quota_pb2.GetQuotaRequest, context: grpc.aio.ServicerContext) -> quota_pb2.Quota:  # noqa: N802
        try:
            with count_request("grpc", "GetQuota"):
                return self.teacher.get_quota(parse_call(context))
        except Exception as error:
            await abort(context, error)

    async def GetTokenizer(  # noqa: N802
        self, request: pb.GetTokenizerRequest, context: grpc.aio.ServicerContext
    ) -> pb.TokenizerReply:
        try:
            with count_request("grpc", "GetTokenizer"):
                return self.teacher.get_tokenizer(request)
        except Exception as error:
            await abort(context, error)

    async def Score(self, request: pb.ScoreRequest, context: grpc.aio.ServicerContext) -> pb.ScoreReply:  # noqa: N802
        try:
            with count_request("grpc", "Score"):
                return await self.teacher.score(request, parse_call(context, request.request_id, request.run_id))
        except Exception as error:
            await abort(context, error)

    async def ScoreStream(  # noqa: N802
        self, requests: AsyncIterator[pb.ScoreRequest], context: grpc.aio.ServicerContext
    ) -> AsyncIterator[pb.ScoreReply]:
        """Replies as they are ready. A failed request gets a reply with its status; the stream goes on."""
        replies: asyncio.Queue[pb.ScoreReply | None] = asyncio.Queue()
        slots = asyncio.Semaphore(MAX_STREAM_REQUESTS)
        tasks: set[asyncio.Task[None]] = set()

        async def answer(request: pb.ScoreRequest) -> None:
            try:
                with (
                    record_request(
                        "grpc", "ScoreStream/request", request_id=request.request_id, headers=text_metadata(context)
                    ),
                    count_request("grpc", "ScoreStream"),
                ):
                    reply = await self.teacher.score(request, _stream_call(context, request))
            except ServiceError as error:
                reply = pb.ScoreReply(request_id=request.request_id, status=error.status())
            except Exception as error:
                log.exception("a request of a stream failed")
                reply = pb.ScoreReply(request_id=request.request_id, status=internal(error).status())
            await replies.put(reply)

        async def read() -> None:
            try:
                async for request in requests:
                    await slots.acquire()
                    task = asyncio.create_task(answer(request))
                    tasks.add(task)
                    task.add_done_callback(tasks.discard)
                await asyncio.gather(*tasks)
            finally:
                replies.put_nowait(None)

        reader = asyncio.create_task(read())
        try:
            while (reply := await replies.get()) is not None:
                yield reply
                slots.release()
            await reader
        except DecodeError as error:
            await abort(context, invalid("request", f"a message of the stream is not a ScoreRequest: {error}"))
        except Exception as error:
            await abort(context, error)
        finally:
            reader.cancel()
            for task in tasks:
                task.cancel()

    async def Generate(  # noqa: N802
        self, request: pb.GenerateRequest, context: grpc.aio.ServicerContext
    ) -> AsyncIterator[pb.GenerateEvent]:
        try:
            with count_request("grpc", "Generate"):
                call = parse_call(context, request.request_id, request.run_id)
                async with aclosing(self.teacher.generate(request, call)) as events:
                    async for event in events:
                        yield event
        except Exception as error:
            await abort(context, error)


def _stream_call(context: grpc.aio.ServicerContext, request: pb.ScoreRequest) -> Call:
    """The call of one request: its own timeout within the stream's deadline."""
    timeout = request.timeout_seconds
    if timeout < 0 or timeout != timeout:
        raise invalid("timeout_seconds", f"timeout_seconds is {timeout:g}: give a number above 0, or none")
    return parse_call(context, request.request_id, request.run_id).with_timeout(timeout or None)
