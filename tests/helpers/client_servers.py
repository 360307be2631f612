"""Teachers that score by a closed formula, over the real gRPC stubs and over HTTP, and that fail on demand."""

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from io import BytesIO

import grpc
import numpy as np
import uvicorn
from fastapi import FastAPI, Request, Response
from fastapi.responses import StreamingResponse
from google.protobuf.proto import serialize_length_prefixed
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from vold_proto.arrays import pack_floats, pack_ids, unpack_ids
from vold_proto.v1 import status_pb2, teacher_pb2_grpc
from vold_proto.v1 import teacher_pb2 as pb

IDENTITY = pb.Identity(model="formula", revision="1", weights_fingerprint="w1", tokenizer_fingerprint="t1")
BAD_ID = 999_999
"""A completion that contains this id gets an error status."""


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def formula(prompt: np.ndarray, ids: np.ndarray) -> np.ndarray:
    """A "log-probability" [T] that depends on the prompt, the id and the position."""
    return (-(ids % 97) / 8 - np.arange(len(ids)) / 16 - prompt.sum() % 31).astype(np.float32)


def score_reply(request: pb.ScoreRequest, identity: pb.Identity = IDENTITY) -> pb.ScoreReply:
    options = request.options
    reply = pb.ScoreReply(
        request_id=request.request_id, identity=identity, dtype=options.dtype, top_k=options.top_k, compute_seconds=0.5
    )
    for index, completion in enumerate(request.completions):
        prompt, ids = unpack_ids(request.prompts[completion.prompt].ids), unpack_ids(completion.ids)
        score = reply.scores.add(id=completion.id)
        if BAD_ID in ids:
            field_name = f"completions[{index}].ids"
            score.status.MergeFrom(
                status_pb2.Status(
                    code=status_pb2.INVALID_ARGUMENT, message=f"{field_name} holds {BAD_ID}", field=field_name
                )
            )
            continue
        values = formula(prompt, ids)
        score.logprobs = pack_floats(values, options.dtype)
        if options.entropy:
            score.entropy = pack_floats(-values, options.dtype)
        if options.top_k:
            ranks = np.arange(options.top_k)
            score.top_ids = pack_ids(ids[:, None] + ranks)
            score.top_logprobs = pack_floats(values[:, None] - ranks, options.dtype)
        if options.hidden_states:
            score.hidden_states = pack_floats(np.repeat(values[:, None], 3, axis=1), options.dtype)
        if options.ranks:
            score.ranks = pack_ids(ids % 7 + 1)
        candidates = completion.candidates
        if candidates.ids:
            counts = unpack_ids(candidates.counts) if candidates.counts else [candidates.per_position] * len(ids)
            flat = unpack_ids(candidates.ids)
            score.candidate_logprobs = pack_floats(np.repeat(values, counts) - flat / 4, options.dtype)
    return reply


@dataclass
class Behaviour:
    """How a server behaves, and the calls that it received.

    status: the status of call number 1, 2, ...; None to serve the call.
    """

    identity: pb.Identity = field(default_factory=lambda: IDENTITY)
    status: Callable[[int], status_pb2.Status | None] = lambda number: None
    hang: bool = False
    delay: Callable[[pb.ScoreRequest], float] = lambda request: 0.0
    break_stream_after: int | None = None
    generate_breaks_after: int | None = None
    requests: list[pb.ScoreRequest] = field(default_factory=list)
    metadata: list[dict[str, str]] = field(default_factory=list)
    calls: int = 0
    entered: asyncio.Event = field(default_factory=asyncio.Event)
    cancelled: asyncio.Event = field(default_factory=asyncio.Event)


class FormulaTeacher(teacher_pb2_grpc.TeacherServiceServicer):
    def __init__(self, behaviour: Behaviour) -> None:
        self.behaviour = behaviour

    async def _begin_call(self, context: grpc.aio.ServicerContext) -> None:
        behaviour = self.behaviour
        behaviour.metadata.append(dict(context.invocation_metadata()))
        behaviour.calls += 1
        behaviour.entered.set()
        if behaviour.hang:
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                behaviour.cancelled.set()
                raise
        status = behaviour.status(behaviour.calls)
        if status is not None:
            code = getattr(grpc.StatusCode, status_pb2.Code.Name(status.code))
            await context.abort(code, status.message, (("vold-status-bin", status.SerializeToString()),))

    async def GetInfo(self, request, context):  # noqa: N802
        await self._begin_call(context)
        return pb.TeacherInfo(
            identity=self.behaviour.identity,
            vocab_size=8,
            special_ids={"eos": 1},
            eos_ids=[1, 2],
            capabilities=pb.Capabilities(top_k=True, generate=True),
        )

    async def Score(self, request, context):  # noqa: N802
        await self._begin_call(context)
        self.behaviour.requests.append(request)
        await asyncio.sleep(self.behaviour.delay(request))
        return score_reply(request, self.behaviour.identity)

    async def ScoreStream(self, requests, context):  # noqa: N802
        await self._begin_call(context)
        replies: asyncio.Queue = asyncio.Queue()
        tasks = []

        async def reply_to(request):
            await asyncio.sleep(self.behaviour.delay(request))
            await replies.put(score_reply(request, self.behaviour.identity))

        async def read():
            async for request in requests:
                self.behaviour.requests.append(request)
                tasks.append(asyncio.create_task(reply_to(request)))

        reader = asyncio.create_task(read())
        try:
            sent = 0
            while True:
                yield await replies.get()
                sent += 1
                if sent == self.behaviour.break_stream_after:
                    self.behaviour.break_stream_after = None
                    await context.abort(grpc.StatusCode.UNAVAILABLE, "going down")
        finally:
            for task in [reader, *tasks]:
                task.cancel()

    async def Generate(self, request, context):  # noqa: N802
        await self._begin_call(context)
        for sent, event in enumerate(generate_events(request)):
            if sent == self.behaviour.generate_breaks_after:
                await context.abort(grpc.StatusCode.UNAVAILABLE, "going down")
            yield event


def delimited(event: pb.GenerateEvent) -> bytes:
    buffer = BytesIO()
    serialize_length_prefixed(event, buffer)
    return buffer.getvalue()


def generate_events(request: pb.GenerateRequest) -> list[pb.GenerateEvent]:
    """The events of a request, last prompt first. A prompt without ids and messages gets an error."""
    events = []
    for prompt in reversed(request.prompts):
        if not prompt.ids and not prompt.messages:
            status = status_pb2.Status(code=status_pb2.INVALID_ARGUMENT, message="empty", field="prompts[0].ids")
            events.append(pb.GenerateEvent(id=prompt.id, status=status))
            continue
        for index in range(request.options.n):
            ids = np.arange(request.options.max_tokens) + index
            events.append(
                pb.GenerateEvent(
                    request_id=request.request_id,
                    identity=IDENTITY,
                    id=prompt.id,
                    index=index,
                    ids=pack_ids(ids),
                    logprobs=pack_floats(-ids),
                    finished=True,
                    finish_reason="length",
                    text="".join(message.content for message in prompt.messages) or "text",
                    prompt_ids=prompt.ids,
                )
            )
    return events


@contextlib.asynccontextmanager
async def grpc_teacher(
    behaviour: Behaviour | None = None, *, port: int = 0, serving: bool = True
) -> AsyncIterator[str]:
    """Yields the URL. At the end the server stops at once, without draining."""
    server = grpc.aio.server(options=[("grpc.so_reuseport", 0), ("grpc.max_receive_message_length", 1 << 20)])
    teacher_pb2_grpc.add_TeacherServiceServicer_to_server(FormulaTeacher(behaviour or Behaviour()), server)
    state = health.aio.HealthServicer()
    health_pb2_grpc.add_HealthServicer_to_server(state, server)
    check = health_pb2.HealthCheckResponse
    await state.set("", check.SERVING if serving else check.NOT_SERVING)
    bound = server.add_insecure_port(f"127.0.0.1:{port}")
    await server.start()
    try:
        yield f"grpc://127.0.0.1:{bound}"
    finally:
        await server.stop(None)


class _Uvicorn(uvicorn.Server):
    @contextlib.contextmanager
    def capture_signals(self):
        yield


@contextlib.asynccontextmanager
async def http_teacher(behaviour: Behaviour | None = None) -> AsyncIterator[str]:
    """The same teacher over HTTP."""
    behaviour = behaviour or Behaviour()
    app = FastAPI()
    protobuf = "application/x-protobuf"

    def begin_call(request: Request) -> Response | None:
        behaviour.calls += 1
        behaviour.metadata.append(dict(request.headers))
        status = behaviour.status(behaviour.calls)
        return None if status is None else Response(status.SerializeToString(), 503, media_type=protobuf)

    @app.get("/readyz")
    async def readyz():
        return "ready"

    @app.post("/v1/score")
    async def score(request: Request):
        if (failure := begin_call(request)) is not None:
            return failure
        message = pb.ScoreRequest.FromString(await request.body())
        behaviour.requests.append(message)
        if behaviour.hang:
            await asyncio.sleep(60)
        await asyncio.sleep(behaviour.delay(message))
        return Response(score_reply(message, behaviour.identity).SerializeToString(), media_type=protobuf)

    @app.post("/v1/generate")
    async def generate(request: Request):
        if (failure := begin_call(request)) is not None:
            return failure
        message = pb.GenerateRequest.FromString(await request.body())

        async def body():
            if behaviour.generate_breaks_after is not None:
                status = status_pb2.Status(code=status_pb2.UNAVAILABLE, message="going down")
                events = generate_events(message)[: behaviour.generate_breaks_after]
                yield b"".join(map(delimited, [*events, pb.GenerateEvent(finished=True, status=status)]))
                return
            data = b"".join(delimited(event) for event in generate_events(message))
            for start in range(0, len(data), 7):
                yield data[start : start + 7]

        return StreamingResponse(body(), media_type=protobuf)

    with socket.create_server(("127.0.0.1", 0)) as listener:
        server = _Uvicorn(uvicorn.Config(app, log_level="warning", lifespan="off", timeout_graceful_shutdown=1))
        task = asyncio.create_task(server.serve(sockets=[listener]))
        try:
            yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        finally:
            server.should_exit = True
            await task
