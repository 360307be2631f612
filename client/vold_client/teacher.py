"""The async client of the teacher."""

# ruff: noqa: ASYNC109  (a timeout here is a deadline that also travels on the wire)
from collections.abc import AsyncGenerator, AsyncIterable, Awaitable, Callable, Iterable, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass, replace
from typing import Any

from vold_proto.v1 import teacher_pb2 as pb

from vold_client.base import AsyncClient, RequestStreams, new_request_id
from vold_client.concurrency import map_as_completed
from vold_client.errors import IdentityChanged, Internal, InvalidArgument, Unavailable, VoldError, from_status
from vold_client.generation import Messages, pack_prompt, pack_sampling, pack_variables, unpack_generation
from vold_client.keys import KeySource
from vold_client.methods import GENERATE, GET_INFO, GET_TEACHER_QUOTA, GET_TOKENIZER, GET_USAGE, SCORE, SCORE_STREAM
from vold_client.packing import Budget, RequestPart, restore_indices, split_request, unpack_identity, unpack_score
from vold_client.replicas import Throttled
from vold_client.tls import Tls
from vold_client.transport import Transport
from vold_client.types import (
    Completion,
    CompletionScore,
    Generation,
    Identity,
    Ids,
    ReplyDType,
    ScoreRequest,
    ScoreResult,
    TeacherInfo,
    TokenizerFile,
    Usage,
)

SendScore = Callable[[Transport, pb.ScoreRequest, float], Awaitable[pb.ScoreReply]]
"""Sends a request to one replica with a timeout in seconds."""


@dataclass(frozen=True, slots=True)
class _PartReply:
    part: RequestPart
    message: pb.ScoreReply
    url: str


class AsyncTeacherClient(AsyncClient):
    """A client of a teacher service, or of several replicas of it, by URL.

    urls: grpc://HOST:PORT, grpcs://, http(s):// or unix:PATH; several in a list, or separated by commas, are replicas.
    timeout: seconds for a whole call, retries included, unless the call sets its own. retries: number of retries while
    the service is unavailable or full. api_key: sent as a bearer token; a function is called for the key, and again
    when a service refuses the key. tls: certificates for grpcs:// and https://. run_id: names this training run in the
    service's accounting. model: one of the service's models; "" for the default. max_in_flight: concurrent requests in
    one `score_stream` or one large `score`. budget: limits of one message. throttled: waits for a service that is over
    a limit for now (Throttled); without it such a call is retried within `timeout` and `retries`.

    Every method raises a subclass of VoldError.
    """

    _quota_method = GET_TEACHER_QUOTA

    def __init__(
        self,
        urls: str | Sequence[str],
        *,
        timeout: float = 60.0,
        retries: int = 4,
        api_key: KeySource = None,
        tls: Tls | None = None,
        run_id: str = "",
        model: str = "",
        max_in_flight: int = 32,
        budget: Budget | None = None,
        throttled: Throttled | None = None,
    ) -> None:
        super().__init__(
            urls, timeout=timeout, retries=retries, api_key=api_key, tls=tls, run_id=run_id, throttled=throttled
        )
        self._model = model
        self._max_in_flight = max_in_flight
        self._budget = budget or Budget()

    async def info(self, model: str = "", *, timeout: float | None = None) -> TeacherInfo:
        """The teacher's identity, limits and capabilities."""
        message = pb.GetInfoRequest(model=model or self._model)
        info, _ = await self._unary(GET_INFO, message, self._deadline(timeout))
        return TeacherInfo(
            identity=unpack_identity(info.identity),
            vocab_size=info.vocab_size,
            tokenizer_size=info.tokenizer_size,
            special_ids=dict(info.special_ids),
            eos_ids=list(info.eos_ids),
            max_sequence=info.max_sequence,
            max_top_k=info.max_top_k,
            max_candidates=info.max_candidates,
            dtype=info.dtype,
            backend=info.backend,
            server_version=info.server_version,
            capabilities=frozenset(field.name for field, value in info.capabilities.ListFields() if value),
            max_reply_bytes=info.max_reply_bytes,
            max_rows=info.max_rows,
            max_prompt_chars=info.max_prompt_chars,
        )

    async def tokenizer(self, model: str = "", *, timeout: float | None = None) -> TokenizerFile:
        """The teacher's tokenizer, for comparison with the student's without a model hub."""
        message = pb.GetTokenizerRequest(model=model or self._model)
        reply, _ = await self._unary(GET_TOKENIZER, message, self._deadline(timeout))
        return TokenizerFile(unpack_identity(reply.identity), reply.tokenizer_json, reply.chat_template)

    async def usage(self, tenant: str = "", *, timeout: float | None = None) -> list[Usage]:
        """The usage of runs since the service started: of the key's tenant, or with an administrator's key of all
        tenants, or of `tenant` alone. With several replicas, the usage of one of them.
        """
        reply, _ = await self._unary(GET_USAGE, pb.GetUsageRequest(tenant=tenant), self._deadline(timeout))
        return [
            Usage(
                tenant=row.tenant,
                run_id=row.run_id,
                requests=row.requests,
                scored_tokens=row.scored_tokens,
                computed_tokens=row.computed_tokens,
                cache_hits=row.cache_hits,
                queue_seconds=row.queue_seconds,
                generated_tokens=row.generated_tokens,
            )
            for row in reply.usage
        ]

    async def score(
        self,
        prompts: Sequence[Ids],
        completions: Sequence[Completion],
        *,
        top_k: int = 0,
        entropy: bool = False,
        temperature: float = 1.0,
        dtype: ReplyDType = "f32",
        hidden_states: bool = False,
        ranks: bool = False,
        expect: Identity | str | None = None,
        priority: int = 0,
        timeout: float | None = None,
        request_id: str | None = None,
    ) -> ScoreResult:
        """Log-probabilities of completions. ScoreRequest describes the options, ScoreResult the result.

        A large request is sent in parts. A completion that cannot be scored has its `error` set. An error of the whole
        call is raised: IdentityChanged if the teacher is not `expect`, or if the teachers of two parts differ.
        """
        request = ScoreRequest(
            prompts=prompts,
            completions=completions,
            top_k=top_k,
            entropy=entropy,
            temperature=temperature,
            dtype=dtype,
            hidden_states=hidden_states,
            ranks=ranks,
            expect=expect,
            priority=priority,
            timeout=timeout,
            request_id=request_id,
        )

        async def send(transport: Transport, message: pb.ScoreRequest, seconds: float) -> pb.ScoreReply:
            return await transport.unary(SCORE, message, self._context(seconds, message.request_id))

        return await self._score(request, send)

    async def score_stream(
        self, requests: Iterable[ScoreRequest] | AsyncIterable[ScoreRequest]
    ) -> AsyncGenerator[ScoreResult, None]:
        """The results of many requests in order of completion, matched by `request_id`.

        Requests are read as fast as results are consumed. A plain iterator is read in a thread, so it may block. A
        failed request has its result's `error` set; only exceptions of the iterator `requests` are raised. Over gRPC
        all requests use one stream per replica, over HTTP concurrent calls.
        """
        async with RequestStreams(SCORE_STREAM, "request_id", self._run_id) as streams:

            async def send(transport: Transport, message: pb.ScoreRequest, seconds: float) -> pb.ScoreReply:
                message.timeout_seconds = seconds
                context = self._context(seconds, message.request_id)
                return await streams.call(transport, message, seconds, lambda: transport.unary(SCORE, message, context))

            async def score(request: ScoreRequest) -> ScoreResult:
                if not request.request_id:
                    request = replace(request, request_id=new_request_id())
                try:
                    return await self._score(request, send)
                except VoldError as error:
                    return ScoreResult(Identity(), [], request_id=request.request_id or "", error=error)

            async with aclosing(map_as_completed(requests, score, self._max_in_flight)) as results:
                async for result in results:
                    yield result

    async def generate(
        self,
        prompts: Sequence[Ids | Messages],
        *,
        n: int = 1,
        max_tokens: int,
        temperature: float = 1.0,
        top_p: float = 1.0,
        top_k: int = 0,
        seed: int | None = None,
        seeds: Sequence[int] | None = None,
        stop_ids: Sequence[int] = (),
        min_p: float = 0.0,
        stop: Sequence[str] = (),
        chat_template_kwargs: Mapping[str, Any] | None = None,
        priority: int = 0,
        timeout: float | None = None,
    ) -> AsyncGenerator[Generation, None]:
        """`n` completions of each prompt (token ids, or chat messages), in order of completion.

        temperature: 0 is greedy. top_p: 1 for all tokens. top_k: 0 for all tokens. seed: the same seed and request give
        the same tokens. seeds: one for each prompt in its place; a prompt and its seed give the same tokens in every
        request, if the teacher has "prompt_seed" among its capabilities. stop_ids: in addition to the model's. min_p:
        tokens less likely than this part of the most likely one are not sampled. stop: texts that end a completion,
        whose text ends before them. chat_template_kwargs: further variables of the teacher's chat template, for chat
        messages.

        A prompt that fails yields one Generation with its `error`. The call is retried only before its first
        completion; a later error is raised.
        """
        request_id = new_request_id()
        if seeds is not None and len(seeds) != len(prompts):
            raise InvalidArgument(f"{len(seeds)} seeds for {len(prompts)} prompts: give one for each", field="seeds")
        options = pack_sampling(n, max_tokens, temperature, top_p, top_k, seed, stop_ids, min_p, stop)
        pack_variables(options, chat_template_kwargs or {})
        message = pb.GenerateRequest(
            request_id=request_id,
            model=self._model,
            prompts=[
                pack_prompt(prompt, index, None if seeds is None else seeds[index])
                for index, prompt in enumerate(prompts)
            ],
            options=options,
            priority=priority,
            run_id=self._run_id,
        )
        deadline = self._deadline(timeout)

        async def start(
            transport: Transport, seconds: float
        ) -> tuple[AsyncGenerator[pb.GenerateEvent, None], pb.GenerateEvent | None, str]:
            events = transport.stream(GENERATE, message, self._context(seconds, request_id))
            return events, await anext(events, None), transport.address.url

        events, event, url = await self._open().call(start, deadline)
        missing = {str(index): n for index in range(len(prompts))}
        try:
            while event is not None:
                failure = from_status(event.status, url)
                if failure is not None and not event.id:
                    raise failure  # over HTTP: a stream that has begun reports an error of the call as an event
                generation = unpack_generation(event, url)
                if event.id in missing:
                    missing[event.id] = 0 if generation.error is not None else missing[event.id] - 1
                yield generation
                event = await anext(events, None)
        finally:
            await events.aclose()
        if any(count > 0 for count in missing.values()):
            raise Unavailable(
                f"the service ended the stream {sum(missing.values())} completions early: request them again", url=url
            )

    async def _score(self, request: ScoreRequest, send: SendScore) -> ScoreResult:
        deadline = self._deadline(request.timeout)
        request_id = request.request_id or new_request_id()
        replicas = self._open()

        async def score_part(part: RequestPart) -> _PartReply:
            async def send_part(transport: Transport, seconds: float) -> _PartReply:
                reply = await send(transport, part.message, seconds)
                failure = from_status(reply.status, transport.address.url)
                if failure is not None:
                    raise failure
                return _PartReply(part, reply, transport.address.url)

            try:
                return await replicas.call(send_part, deadline)
            except VoldError as error:
                raise restore_indices(error, part) from None

        parts = list(split_request(request, request_id, self._model, self._run_id, self._budget))
        async with aclosing(map_as_completed(parts, score_part, self._max_in_flight)) as results:
            replies = [reply async for reply in results]
        return _merge_replies(request, request_id, replies)


def _merge_replies(request: ScoreRequest, request_id: str, replies: list[_PartReply]) -> ScoreResult:
    identity = unpack_identity(replies[0].message.identity)
    for reply in replies:
        _check_identity(unpack_identity(reply.message.identity), identity, request.expect, reply.url)
    scores: dict[int, CompletionScore] = {}
    for part, message, url in ((reply.part, reply.message, reply.url) for reply in replies):
        if len(message.scores) != len(part.completions):
            raise Internal(f"{len(message.scores)} scores came back for {len(part.completions)} completions", url=url)
        for index, score in zip(part.completions, message.scores, strict=True):
            completion = request.completions[index]
            unpacked = unpack_score(score, completion, completion.id or str(index), message, url)
            if unpacked.error is not None:
                unpacked = replace(unpacked, error=restore_indices(unpacked.error, part))
            scores[index] = unpacked
    return ScoreResult(
        identity=identity,
        scores=[scores[index] for index in range(len(request.completions))],
        queue_seconds=max(reply.message.queue_seconds for reply in replies),
        compute_seconds=sum(reply.message.compute_seconds for reply in replies),
        request_id=request_id,
    )


def _check_identity(actual: Identity, first: Identity, expect: Identity | str | None, url: str) -> None:
    """Raise IdentityChanged if `actual` is not `expect`, or if it is not the first part's identity."""
    if isinstance(expect, str) and expect and actual.weights_fingerprint != expect:
        raise IdentityChanged(
            f"the teacher's weights are {actual.weights_fingerprint!r}, and {expect!r} were expected", url=url
        )
    expected = expect if isinstance(expect, Identity) else first
    pairs = (
        ("weights", actual.weights_fingerprint, expected.weights_fingerprint),
        ("tokenizer", actual.tokenizer_fingerprint, expected.tokenizer_fingerprint),
    )
    for name, actual_digest, expected_digest in pairs:
        if expected_digest and actual_digest != expected_digest:
            raise IdentityChanged(
                f"the teacher's {name} ({actual.model}: {actual_digest!r}) are not the ones expected "
                f"({expected.model}: {expected_digest!r}): replicas must serve one model, and a run keeps its teacher",
                url=url,
            )
