"""The gRPC face: it only translates."""

import asyncio
import logging
import time
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing
from dataclasses import dataclass

import grpc
from vold_proto.v1 import quota_pb2, teacher_pb2_grpc
from vold_proto.v1 import teacher_pb2 as pb
from vold_service.access import record_request
from vold_service.errors import MAX_NAME, ServiceError, internal, invalid
from vold_service.grpc import abort, parse_call, text_metadata
from vold_service.messages import parse_message, peek_text
from vold_service.quota import Place

from vold_teacher.metrics import STAGE_SECONDS, count_request, time_stage
from vold_teacher.reply import Form, ScoreAnswer
from vold_teacher.service import Teacher

log = logging.getLogger("vold.teacher.grpc")

SERVICE_NAME = "vold.v1.TeacherService"
PLACED = frozenset({"Score", "Generate", "GetTokenizer"})
"""The methods whose calls take a place of their tenant. Each request of a ScoreStream takes its own."""
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
                return self.teacher.get_tokenizer(request, parse_call(context))
        except Exception as error:
            await abort(context, error)

    async def Score(self, request: pb.ScoreRequest, context: grpc.aio.ServicerContext) -> bytes:  # type: ignore[override]  # noqa: N802
        """The ScoreReply, packed: the server sends bytes as they are."""
        try:
            with count_request("grpc", "Score"):
                answer = await self.teacher.score(request, parse_call(context, request.request_id, request.run_id))
                return await packed_whole(answer)
        except Exception as error:
            await abort(context, error)

    async def ScoreStream(  # type: ignore[override]  # noqa: N802
        self, requests: AsyncIterator[bytes], context: grpc.aio.ServicerContext
    ) -> AsyncIterator[bytes | pb.ScoreReply]:
        """Replies as they are ready. A failed request gets a reply with its status; the stream goes on."""
        replies: asyncio.Queue[_StreamReply | ServiceError | None] = asyncio.Queue()
        slots = asyncio.Semaphore(MAX_STREAM_REQUESTS)
        tasks: set[asyncio.Task[None]] = set()

        async def answer(data: bytes) -> None:
            request_id = peek_text(pb.ScoreRequest, data, "request_id")[:MAX_NAME]
            places: list[Place] = []
            try:
                with (
                    record_request(
                        "grpc", "ScoreStream/request", request_id=request_id, headers=text_metadata(context)
                    ),
                    count_request("grpc", "ScoreStream"),
                ):
                    call = parse_call(context, request_id).with_place(self.teacher.quotas, len(data))
                    assert call.place is not None
                    places.append(call.place)
                    try:
                        request = await parse_message(pb.ScoreRequest, data, self.teacher.max_fields)
                    except ServiceError as error:
                        replies.put_nowait(error)  # the stream ends: what it holds are not requests
                        raise
                    call = call.with_ids(request.request_id, request.run_id).with_timeout(_timeout(request))
                    reply: ScoreAnswer | pb.ScoreReply = await self.teacher.score(request, call, Form.STREAM)
            except ServiceError as error:
                reply = pb.ScoreReply(request_id=request_id, status=error.status())
            except Exception as error:
                log.exception("a request of a stream failed")
                reply = pb.ScoreReply(request_id=request_id, status=internal(error).status())
            except BaseException:  # the stream has ended
                for place in places:
                    place.close()
                raise
            replies.put_nowait(_StreamReply(reply, places))

        async def read() -> None:
            try:
                async for data in requests:
                    await slots.acquire()
                    task = asyncio.create_task(answer(data))
                    tasks.add(task)
                    task.add_done_callback(tasks.discard)
                await asyncio.gather(*tasks)
            finally:
                replies.put_nowait(None)

        reader = asyncio.create_task(read())
        try:
            while (reply := await replies.get()) is not None:
                if isinstance(reply, ServiceError):
                    raise reply
                try:
                    if isinstance(reply.message, ScoreAnswer):
                        async with aclosing(_packed_parts(reply.message, self.teacher.max_reply_bytes)) as parts:
                            async for part in parts:
                                yield part
                    else:
                        yield reply.message
                finally:
                    reply.close()
                slots.release()
            await reader
        except Exception as error:
            await abort(context, error)
        finally:
            reader.cancel()
            for task in tasks:
                task.cancel()
            while not replies.empty():
                if isinstance(left := replies.get_nowait(), _StreamReply):
                    left.close()

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


@dataclass(frozen=True, slots=True)
class _StreamReply:
    """A reply of a stream, and the places that it holds until it is sent."""

    message: ScoreAnswer | pb.ScoreReply
    places: list[Place]

    def close(self) -> None:
        for place in self.places:
            place.close()


async def packed_whole(answer: ScoreAnswer) -> bytes:
    with time_stage("serialize"):
        return b"".join(await answer.whole())


async def _packed_parts(answer: ScoreAnswer, max_bytes: int) -> AsyncGenerator[bytes, None]:
    """The parts of a reply. Each is packed while the one before waits to be sent."""
    parts, seconds = answer.parts(max_bytes), 0.0

    async def pack_next() -> list[bytes] | None:
        nonlocal seconds
        began = time.monotonic()
        pieces = await anext(parts, None)
        seconds += time.monotonic() - began
        return pieces

    pieces = await pack_next()
    while pieces is not None:
        following = await pack_next()
        if following is None:
            STAGE_SECONDS.labels("serialize").observe(seconds)
        yield b"".join(pieces)
        pieces = following


def _timeout(request: pb.ScoreRequest) -> float | None:
    """The timeout of one request of a stream, within the stream's deadline; None for no other."""
    timeout = request.timeout_seconds
    if timeout < 0 or timeout != timeout:
        raise invalid("timeout_seconds", f"timeout_seconds is {timeout:g}: give a number above 0, or none")
    return timeout or None
