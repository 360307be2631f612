"""The teacher under both faces: wire messages in, wire messages out. Every rule of the service is enforced below it."""

import asyncio
from collections import Counter
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from dataclasses import asdict, replace
from typing import Any

import numpy as np
from vold_proto.arrays import pack_floats, pack_ids
from vold_proto.distribution import VERSION
from vold_proto.v1 import quota_pb2, status_pb2
from vold_proto.v1 import teacher_pb2 as pb
from vold_service.call import Call
from vold_service.errors import ServiceError, check_name, deadline_exceeded, invalid
from vold_service.keys import require_admin
from vold_service.processes import Processes
from vold_service.quota import REFUNDED_CODES, Place, Quotas
from vold_service.turns import Turn
from vold_service.usage import Counts, Usage

from vold_teacher import metrics
from vold_teacher.detokenizer import StopReader
from vold_teacher.metrics import time_stage
from vold_teacher.models import LoadedModel, Models
from vold_teacher.reply import Form, ScoreAnswer, json_row_bytes, row_bytes
from vold_teacher.texts import estimated_tokens
from vold_teacher.types import GenerateChunk, GeneratePrompt, SamplingOptions, Sequence
from vold_teacher.validation import (
    Limits,
    check_count,
    check_names,
    check_reply_bytes,
    count_sent_tokens,
    each_sequence,
    make_prompt,
    read_sampling_options,
    read_score_options,
    read_stop_texts,
    read_template_variables,
    read_token_ids,
)

INLINE_REPLY_BYTES = 1 << 14
"""A larger reply is written as JSON by another process."""


class Teacher:
    """The calls of both faces, for the models in `models`."""

    def __init__(
        self,
        models: Models,
        *,
        max_sequences: int,
        max_reply_bytes: int,
        max_rows: int,
        max_tenant_bytes: int,
        processes: Processes,
        usage: Usage,
    ) -> None:
        """processes: for work that must not run on the event loop. usage: the accounts, the models' among them."""
        self.models = models
        self._max_sequences = max_sequences
        self.max_reply_bytes = max_reply_bytes
        self._max_rows = max_rows
        self.processes = processes
        self.quotas = Quotas(max_bytes=max_tenant_bytes)
        self.usage = usage

    @property
    def max_fields(self) -> int:
        """The most fields of a request in protobuf, with those of its entries (vold_service.messages)."""
        return 32 * self._max_sequences + 1024

    async def encode_json(self, encode: Callable[..., bytes], *arguments: Any, size: int, call: Call) -> bytes:
        """`encode(*arguments)`, a reply as JSON, by another process if `size` bytes of it could take long."""
        if size <= INLINE_REPLY_BYTES:
            return encode(*arguments)
        return await self.processes.run(encode, *arguments, tenant=call.tenant)

    def get_info(self, request: pb.GetInfoRequest) -> pb.TeacherInfo:
        model = self.models.find(request.model)
        backend = model.engine.backend.info
        capabilities = backend.capabilities
        return pb.TeacherInfo(
            identity=model.identity,
            vocab_size=backend.vocab_size,
            tokenizer_size=model.tokenizer.size,
            special_ids=model.tokenizer.special_ids,
            max_sequence=backend.max_sequence,
            max_top_k=model.limits.allowed_top_k,
            max_candidates=model.limits.allowed_candidates,
            dtype=backend.dtype,
            backend=backend.backend,
            server_version=VERSION,
            capabilities=pb.Capabilities(
                temperature=capabilities.temperature,
                top_k=model.limits.allowed_top_k > 0,
                candidates=capabilities.candidates,
                entropy=capabilities.entropy,
                hidden_states=capabilities.hidden_states,
                generate=capabilities.generate,
                ranks=capabilities.ranks,
                seed=capabilities.seed,
                prompt_seed=capabilities.seed,
            ),
            eos_ids=model.eos_ids,
            max_reply_bytes=self.max_reply_bytes,
            max_rows=self._max_rows,
            max_prompt_chars=model.texts.max_characters(backend.max_sequence),
        )

    def get_tokenizer(self, request: pb.GetTokenizerRequest, call: Call) -> pb.TokenizerReply:
        """call: has a place, which holds the bytes of the file."""
        model = self.models.find(request.model)
        _place(call).hold(len(model.tokenizer.file), "model")
        return pb.TokenizerReply(
            identity=model.identity,
            tokenizer_json=model.tokenizer.file,
            chat_template=model.tokenizer.chat_template,
        )

    def get_usage(self, request: pb.GetUsageRequest, call: Call) -> pb.UsageReply:
        """The caller's own usage; for an administrator, the usage of all tenants or of the named one."""
        tenant = request.tenant
        check_name("tenant", tenant)
        if not call.tenant.admin:
            if tenant not in ("", call.tenant.name):
                require_admin(call.tenant, f"the usage of {tenant!r}")
            tenant = call.tenant.name
        rows = (pb.Usage(tenant=name, run_id=run, **asdict(counts)) for name, run, counts in self.usage.rows(tenant))
        return pb.UsageReply(usage=rows, since=self.usage.since)

    def get_quota(self, call: Call) -> quota_pb2.Quota:
        """The limits of the caller's tenant, and how much of them is used."""
        return self.quotas.quota(call.tenant)

    async def score(self, request: pb.ScoreRequest, call: Call, form: Form = Form.MESSAGE) -> ScoreAnswer:
        """Score every valid completion. An invalid completion has its own status in the reply.

        call: has a place, which holds the bytes of the reply from here on. form: what the reply will be sent as.
        """
        model = self.models.find(request.model)
        _check_fingerprint(request.expect_weights_fingerprint, model)
        limits = model.limits.for_tenant(call.tenant)
        options = read_score_options(request.options, limits)
        check_count("completions", len(request.completions), limits)
        check_count("prompts", len(request.prompts), limits)
        check_names(request)
        sequences: dict[int, Sequence] = {}
        errors: dict[int, ServiceError] = {}
        hidden_size = model.engine.backend.info.hidden_size
        size, turn = 0, Turn()
        with time_stage("parse"):
            for index, read in each_sequence(request, options, limits, call.tenant.cache_owner):
                identifier = request.completions[index].id
                if form is Form.JSON:
                    row = json_row_bytes(read, identifier, hidden_size)
                else:
                    row = row_bytes(read, identifier, request.options.dtype, hidden_size)
                check_reply_bytes(row, f"completions[{index}]", "shorten it, or ask for less of it", limits)
                size += row
                if isinstance(read, ServiceError):
                    errors[index] = read
                else:
                    sequences[index] = read
                await turn.pause()
        if form is not Form.STREAM:  # which sends a longer reply in parts
            check_reply_bytes(size, "completions", "send fewer at a time, or on ScoreStream, or ask for less", limits)
        place = _place(call)
        place.hold(size, "completions")
        with place.charging(count_sent_tokens(request, sequences)):
            counts = Counts(requests=1)
            try:
                scored = await model.engine.score(sequences, call=call, priority=request.priority)
                counts.cache_hits, counts.queue_seconds = len(scored.cached), scored.queue_seconds
                counts.scored_tokens = sum(
                    len(sequences[index].completion)
                    for index, score in scored.scores.items()
                    if not isinstance(score, ServiceError)
                )
            except ServiceError as error:
                counts.requests = int(error.code not in REFUNDED_CODES)
                raise
            finally:  # a request that is given up is on its tenant's account too, as what is computed for it
                self.usage.add(call, counts)
        metrics.count_score_request(
            call.tenant.name, counts.scored_tokens, scored.queue_seconds, scored.compute_seconds
        )
        return ScoreAnswer(
            pb.ScoreReply(
                request_id=call.request_id,
                identity=model.identity,
                dtype=request.options.dtype,
                top_k=options.top_k,
                queue_seconds=scored.queue_seconds,
                compute_seconds=scored.compute_seconds,
            ),
            [completion.id for completion in request.completions],
            [errors[index] if index in errors else scored.scores[index] for index in range(len(request.completions))],
            scored.cached,
        )

    async def generate(
        self, request: pb.GenerateRequest, call: Call, *, whole: bool = False
    ) -> AsyncGenerator[pb.GenerateEvent, None]:
        """Events as completions finish. An invalid prompt has one event, with its status.

        call: has a place. whole: the events are sent in one JSON object, so that its size is bounded.
        """
        model = self.models.find(request.model)
        if not model.limits.capabilities.generate:
            raise invalid("model", f"{model.identity.model} cannot generate on this server: it scores only")
        limits = model.limits.for_tenant(call.tenant)
        options = read_sampling_options(request.options, limits, model.eos_ids)
        check_count("prompts", len(request.prompts), limits)
        check_names(request)
        stop = read_stop_texts(request.options)
        variables = read_template_variables(request.options, request.prompts)
        model.tokenizer.check_variables(variables, "options.chat_template_kwargs")
        size = sum(_event_bytes(message, options, limits, whole=whole) for message in request.prompts)
        if whole:
            check_reply_bytes(size, "prompts", "set stream to true, or send fewer prompts at a time", limits)
        place = _place(call)
        place.hold(min(size, limits.max_reply_bytes), "prompts")
        # Before any text is rendered: a tenant without tokens left costs nothing.
        place.prepay(sum(_estimated_tokens(message, options, limits) for message in request.prompts))
        place.spend(sum(_estimated_prompt(message, limits) for message in request.prompts if message.messages))
        prompts, failures = await self._read_prompts(request, options, model, limits, call, variables)
        unfinished: dict[tuple[int, int], list[GenerateChunk]] = {}
        stops = StopReader(model.tokenizer, stop) if stop else None
        with place.charging(sum(len(prompt.ids) + options.n * prompt.max_tokens for prompt in prompts.values())):
            async with aclosing(
                self._generate_metered(model, list(prompts.values()), options, call, request.priority, stops)
            ) as chunks:
                async for chunk in chunks:
                    parts = unfinished.setdefault((chunk.prompt, chunk.index), [])
                    parts.append(chunk)
                    if chunk.finish_reason is None and not options.stream_tokens:
                        continue  # the tokens come one by one for the stop texts alone
                    if not options.stream_tokens:
                        chunk = _joined(parts)
                    event = pb.GenerateEvent(
                        request_id=call.request_id,
                        identity=model.identity,
                        id=request.prompts[chunk.prompt].id,
                        index=chunk.index,
                        ids=pack_ids(chunk.ids),
                        logprobs=pack_floats(chunk.logprobs),
                    )
                    if chunk.finish_reason is not None:
                        del unfinished[chunk.prompt, chunk.index]
                        event.finished = True
                        event.finish_reason = chunk.finish_reason
                        event.text = (
                            stops.text(chunk.prompt, chunk.index)
                            if stops is not None
                            else model.tokenizer.decode(np.concatenate([part.ids for part in parts]))
                        )
                        event.prompt_ids = pack_ids(prompts[chunk.prompt].ids)
                    yield event
        # Last: if the call as a whole is refused, and sent again, no event may have been sent.
        for index, failure in failures.items():
            yield pb.GenerateEvent(
                request_id=call.request_id,
                identity=model.identity,
                id=request.prompts[index].id,
                finished=True,
                status=failure.status(),
            )

    async def _read_prompts(
        self,
        request: pb.GenerateRequest,
        options: SamplingOptions,
        model: LoadedModel,
        limits: Limits,
        call: Call,
        variables: dict[str, Any],
    ) -> tuple[dict[int, GeneratePrompt], dict[int, ServiceError]]:
        """The valid prompts, and the errors of the invalid ones, by index."""
        prompts: dict[int, GeneratePrompt] = {}
        failures: dict[int, ServiceError] = {}
        turn = Turn()
        try:
            async with asyncio.timeout(call.remaining()):
                for index, message in enumerate(request.prompts):
                    try:
                        prompts[index] = await _read_prompt(message, index, options, model, limits, call, variables)
                    except ServiceError as error:
                        failures[index] = error
                    await turn.pause()
        except TimeoutError as error:
            raise deadline_exceeded() from error
        return prompts, failures

    async def _generate_metered(
        self,
        model: LoadedModel,
        prompts: list[GeneratePrompt],
        options: SamplingOptions,
        call: Call,
        priority: int,
        stops: StopReader | None,
    ) -> AsyncGenerator[GenerateChunk, None]:
        """The engine's chunks, charged to the caller's quota and usage.

        The quota is charged for max_tokens of every completion. When a completion ends, its unused tokens are refunded.
        """
        max_tokens = {prompt.index: prompt.max_tokens for prompt in prompts}
        lengths: Counter[tuple[int, int]] = Counter()
        self.usage.add(call, Counts(requests=1))
        cut = None
        if stops is not None:
            cut, options = stops.cut, replace(options, stream_tokens=True)
        async with aclosing(model.engine.generate(prompts, options, call=call, priority=priority, cut=cut)) as chunks:
            async for chunk in chunks:
                self.usage.add(call, Counts(generated_tokens=len(chunk.ids)))
                lengths[chunk.prompt, chunk.index] += len(chunk.ids)
                _place(call).answered()  # a caller that reads too slowly is refused then, and has the rest computed
                if chunk.finish_reason is not None:
                    _place(call).refund(max_tokens[chunk.prompt] - lengths[chunk.prompt, chunk.index])
                yield chunk


def _joined(parts: list[GenerateChunk]) -> GenerateChunk:
    """The chunks of a finished completion as one."""
    return replace(
        parts[-1],
        ids=np.concatenate([part.ids for part in parts]),
        logprobs=np.concatenate([part.logprobs for part in parts]),
    )


def _place(call: Call) -> Place:
    assert call.place is not None, "the face has opened no place for the call"
    return call.place


def _estimated_tokens(message: pb.GeneratePrompt, options: SamplingOptions, limits: Limits) -> int:
    """Tokens of a prompt and its completions, before its text is rendered."""
    prompt = _estimated_prompt(message, limits)
    return prompt + options.n * min(options.max_tokens, limits.max_sequence - prompt)


def _estimated_prompt(message: pb.GeneratePrompt, limits: Limits) -> int:
    prompt = len(message.ids) // 4 or estimated_tokens([each.content for each in message.messages])
    return min(prompt, limits.max_sequence)


def _event_bytes(message: pb.GeneratePrompt, options: SamplingOptions, limits: Limits, *, whole: bool) -> int:
    """The most bytes of the events of a prompt: ids, log-probabilities and text of its completions, and its own ids."""
    completion = min(options.max_tokens, limits.max_sequence)
    prompt = min(len(message.ids) // 4, limits.max_sequence) if message.ids else limits.max_sequence
    per_token, per_id, per_event = (60, 12, 1000) if whole else (16, 4, 500)
    return options.n * (completion * per_token + prompt * per_id + per_event + 6 * len(message.id))


def _check_fingerprint(expected: str, model: LoadedModel) -> None:
    check_name("expect_weights_fingerprint", expected)
    if expected and expected != model.identity.weights_fingerprint:
        raise ServiceError(
            status_pb2.FAILED_PRECONDITION,
            f"the weights here are {model.identity.weights_fingerprint}, not {expected}: the teacher was changed; "
            "start the run again, or allow the change in its config",
            field="expect_weights_fingerprint",
        )


async def _read_prompt(
    message: pb.GeneratePrompt,
    index: int,
    options: SamplingOptions,
    model: LoadedModel,
    limits: Limits,
    call: Call,
    variables: dict[str, Any],
) -> GeneratePrompt:
    field = f"prompts[{index}]"
    if message.ids and message.messages:
        raise invalid(field, f"{field} has both ids and messages: send one of them")
    if message.messages:
        model.texts.check([each.content for each in message.messages], f"{field}.messages", limits.max_sequence)
        ids = await model.texts.render(message.messages, f"{field}.messages", tenant=call.tenant, variables=variables)
    else:
        ids = read_token_ids(message.ids, f"{field}.ids", limits)
    seed = message.seed if message.HasField("seed") else None
    return make_prompt(ids, seed, index, options, limits, call.tenant.cache_owner)
