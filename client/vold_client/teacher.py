"""The teacher's client, async."""

# ruff: noqa: ASYNC109  (a timeout here is a deadline that also travels on the wire)
from collections.abc import AsyncGenerator, AsyncIterable, Awaitable, Callable, Iterable, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass, replace
from typing import cast

import numpy as np
from vold_proto.arrays import unpack_floats, unpack_ids
from vold_proto.v1 import teacher_pb2 as pb

from vold_client.base import AsyncClient, Exchanges, new_request_id
from vold_client.concurrency import map_as_ready
from vold_client.errors import IdentityChanged, Internal, InvalidArgument, Unavailable, VoldError, from_status
from vold_client.methods import GENERATE, GET_INFO, GET_TOKENIZER, GET_USAGE, SCORE, SCORE_STREAM
from vold_client.packing import Budget, Part, pack_array, renumber, split, unpack_score
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

Messages = Sequence[Mapping[str, str]]
"""Chat messages: [{"role": "user", "content": "..."}, ...]."""

Ask = Callable[[Transport, pb.ScoreRequest, float], Awaitable[pb.ScoreReply]]


@dataclass(frozen=True, slots=True)
class _Answer:
    part: Part
    reply: pb.ScoreReply
    url: str


class AsyncTeacherClient(AsyncClient):
    """A teacher service, or several replicas of one, by URL.

    urls: grpc://HOST:PORT, grpcs://, http(s):// or unix:PATH; several in a list, or with commas between, are
    replicas. timeout: seconds for a whole call, retries included, where the call names none. retries: how often what
    may be retried is tried again (a service that is unavailable or full). api_key: sent as a bearer token. tls:
    certificates for grpcs:// and https://. run_id:
    names this training run in the service's accounting. model: which of the service's models; "" for its default.
    max_in_flight: requests under way at once in one `score_stream` or one large `score`.

    Every method raises VoldError of the kind that says what went wrong.
    """

    def __init__(
        self,
        urls: str | Sequence[str],
        *,
        timeout: float = 60.0,
        retries: int = 4,
        api_key: str | None = None,
        tls: Tls | None = None,
        run_id: str = "",
        model: str = "",
        max_in_flight: int = 32,
        budget: Budget | None = None,
    ) -> None:
        super().__init__(urls, timeout=timeout, retries=retries, api_key=api_key, tls=tls, run_id=run_id)
        self._model = model
        self._max_in_flight = max_in_flight
        self._budget = budget or Budget()

    async def info(self, model: str = "", *, timeout: float | None = None) -> TeacherInfo:
        """Who answers, and what it can do."""
        message = pb.GetInfoRequest(model=model or self._model)
        info, _ = await self._unary(GET_INFO, message, self._deadline(timeout))
        return TeacherInfo(
            identity=_identity(info.identity),
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
        )

    async def tokenizer(self, model: str = "", *, timeout: float | None = None) -> TokenizerFile:
        """The teacher's tokenizer, to be compared with the student's without a model hub."""
        message = pb.GetTokenizerRequest(model=model or self._model)
        reply, _ = await self._unary(GET_TOKENIZER, message, self._deadline(timeout))
        return TokenizerFile(_identity(reply.identity), reply.tokenizer_json, reply.chat_template)

    async def usage(self, tenant: str = "", *, timeout: float | None = None) -> list[Usage]:
        """What runs have taken of the service since it started: this key's tenant's, or with an administrator's key
        everybody's, or those of `tenant` alone. Of one replica where there are several.
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
        """Log-probabilities of completions; see ScoreRequest for the options and ScoreResult for the result.

        A large request is sent in parts and joined again. A completion that cannot be scored carries its own `error`;
        what fails the whole call is raised. IdentityChanged: `expect` did not answer, or the parts were answered by
        teachers that differ.
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

        async def ask(transport: Transport, message: pb.ScoreRequest, seconds: float) -> pb.ScoreReply:
            return await transport.unary(SCORE, message, self._context(seconds, message.request_id))

        return await self._score(request, ask)

    async def score_stream(
        self, requests: Iterable[ScoreRequest] | AsyncIterable[ScoreRequest]
    ) -> AsyncGenerator[ScoreResult, None]:
        """The results of many requests as they are ready, out of order, matched by `request_id`.

        Requests are read as fast as results are consumed; a plain iterator is read in a thread, so that it may take
        its time. A request that fails has its result's `error` set; only the source's own exceptions are raised. Over
        gRPC everything travels on one stream to each replica, over HTTP as calls side by side.
        """
        async with Exchanges(SCORE_STREAM, "request_id", self._run_id) as exchanges:

            async def ask(transport: Transport, message: pb.ScoreRequest, seconds: float) -> pb.ScoreReply:
                exchange = await exchanges.to(transport)
                if exchange is None:
                    return await transport.unary(SCORE, message, self._context(seconds, message.request_id))
                message.timeout_seconds = seconds
                return await exchange.ask(message, seconds)

            async def one(request: ScoreRequest) -> ScoreResult:
                named = request if request.request_id else replace(request, request_id=new_request_id())
                try:
                    return await self._score(named, ask)
                except VoldError as error:
                    return ScoreResult(Identity(), [], request_id=named.request_id or "", error=error)

            async with aclosing(map_as_ready(requests, one, self._max_in_flight)) as results:
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
        stop_ids: Sequence[int] = (),
        priority: int = 0,
        timeout: float | None = None,
    ) -> AsyncGenerator[Generation, None]:
        """`n` completions of each prompt (token ids, or chat messages), each as soon as it is finished.

        temperature: 0 is greedy. top_p: 1 for all. top_k: 0 for all. seed: the same seed and request give the same
        tokens. stop_ids: besides the model's own. A prompt that fails yields one Generation with its `error`. The
        call is retried only before its first completion; where it breaks off later, the error is raised.
        """
        request_id = new_request_id()
        try:
            options = pb.GenerateOptions(
                n=n,
                max_tokens=max_tokens,
                temperature=temperature,
                top_p=top_p,
                top_k=top_k,
                seed=seed,
                stop_ids=[int(token) for token in stop_ids],
            )
        except (ValueError, TypeError) as error:
            raise InvalidArgument(f"a sampling option is out of range: {error}", field="options") from None
        message = pb.GenerateRequest(
            request_id=request_id,
            model=self._model,
            prompts=[_generate_prompt(prompt, index) for index, prompt in enumerate(prompts)],
            options=options,
            priority=priority,
            run_id=self._run_id,
        )
        deadline = self._deadline(timeout)

        async def begin(
            transport: Transport, seconds: float
        ) -> tuple[AsyncGenerator[pb.GenerateEvent, None], pb.GenerateEvent | None, str]:
            events = transport.stream(GENERATE, message, self._context(seconds, request_id))
            return events, await anext(events, None), transport.address.url

        events, event, url = await self._open().call(begin, deadline)
        missing = {str(index): n for index in range(len(prompts))}
        try:
            while event is not None:
                failure = from_status(event.status, url)
                if failure is not None and not event.id:
                    raise failure  # over HTTP, where a stream that has begun has no other way to say so
                generation = _generation(event, url)
                if event.id in missing:
                    missing[event.id] = 0 if generation.error is not None else missing[event.id] - 1
                yield generation
                event = await anext(events, None)
        finally:
            await events.aclose()
        if any(left > 0 for left in missing.values()):
            raise Unavailable(
                f"the service ended the stream {sum(missing.values())} completions early: ask for them again", url=url
            )

    async def _score(self, request: ScoreRequest, ask: Ask) -> ScoreResult:
        deadline = self._deadline(request.timeout)
        request_id = request.request_id or new_request_id()
        replicas = self._open()

        async def one(part: Part) -> _Answer:
            async def work(transport: Transport, seconds: float) -> _Answer:
                reply = await ask(transport, part.message, seconds)
                failure = from_status(reply.status, transport.address.url)
                if failure is not None:
                    raise failure
                return _Answer(part, reply, transport.address.url)

            try:
                return await replicas.call(work, deadline)
            except VoldError as error:
                raise renumber(error, part) from None

        parts = list(split(request, request_id, self._model, self._run_id, self._budget))
        async with aclosing(map_as_ready(parts, one, self._max_in_flight)) as results:
            answers = [answer async for answer in results]
        return _join(request, request_id, answers)


def _join(request: ScoreRequest, request_id: str, answers: list[_Answer]) -> ScoreResult:
    identity = _identity(answers[0].reply.identity)
    for answer in answers:
        _check_identity(_identity(answer.reply.identity), identity, request.expect, answer.url)
    scores: dict[int, CompletionScore] = {}
    for answer in answers:
        if len(answer.reply.scores) != len(answer.part.completions):
            raise Internal(
                f"{len(answer.reply.scores)} scores came back for {len(answer.part.completions)} completions",
                url=answer.url,
            )
        for index, score in zip(answer.part.completions, answer.reply.scores, strict=True):
            completion = request.completions[index]
            unpacked = unpack_score(score, completion, completion.id or str(index), answer.reply, answer.url)
            if unpacked.error is not None:
                unpacked = replace(unpacked, error=renumber(unpacked.error, answer.part))
            scores[index] = unpacked
    return ScoreResult(
        identity=identity,
        scores=[scores[index] for index in range(len(request.completions))],
        queue_seconds=max(answer.reply.queue_seconds for answer in answers),
        compute_seconds=sum(answer.reply.compute_seconds for answer in answers),
        request_id=request_id,
    )


def _check_identity(found: Identity, first: Identity, expect: Identity | str | None, url: str) -> None:
    if isinstance(expect, str) and expect and found.weights_fingerprint != expect:
        raise IdentityChanged(
            f"the teacher's weights are {found.weights_fingerprint!r}, and {expect!r} were expected", url=url
        )
    wanted = expect if isinstance(expect, Identity) else first
    pairs = (
        ("weights", found.weights_fingerprint, wanted.weights_fingerprint),
        ("tokenizer", found.tokenizer_fingerprint, wanted.tokenizer_fingerprint),
    )
    for what, here, there in pairs:
        if there and here != there:
            raise IdentityChanged(
                f"the teacher's {what} ({found.model}: {here!r}) are not the ones expected "
                f"({wanted.model}: {there!r}): replicas must serve one model, and a run keeps its teacher",
                url=url,
            )


def _identity(identity: pb.Identity) -> Identity:
    return Identity(identity.model, identity.revision, identity.weights_fingerprint, identity.tokenizer_fingerprint)


def _generate_prompt(prompt: Ids | Messages, index: int) -> pb.GeneratePrompt:
    if len(prompt) and isinstance(prompt[0], Mapping):
        try:
            messages = [pb.ChatMessage(**cast(Mapping[str, str], message)) for message in prompt]
        except (ValueError, TypeError) as error:
            raise InvalidArgument(
                f"prompts[{index}]: a message has a role and a content, both text: {error}", field=f"prompts[{index}]"
            ) from None
        return pb.GeneratePrompt(id=str(index), messages=messages)
    return pb.GeneratePrompt(id=str(index), ids=pack_array(cast(Ids, prompt), f"prompts[{index}]"))


def _generation(event: pb.GenerateEvent, url: str) -> Generation:
    if not event.id.isdecimal():
        raise Internal(f"a completion came back for the prompt {event.id!r}, which was not sent", url=url)
    return Generation(
        prompt=int(event.id),
        index=event.index,
        ids=unpack_ids(event.ids),
        logprobs=unpack_floats(event.logprobs) if event.logprobs else np.empty(0, np.float32),
        text=event.text,
        finish_reason=event.finish_reason,
        prompt_ids=unpack_ids(event.prompt_ids),
        identity=_identity(event.identity),
        error=from_status(event.status, url),
    )
