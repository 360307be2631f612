"""The teacher, whichever face asks: wire messages in, wire messages out. Every rule of the service is under here."""

import asyncio
import logging
from collections.abc import AsyncGenerator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing
from dataclasses import dataclass
from importlib.metadata import version

import numpy as np
from vold_proto.arrays import pack_floats, pack_ids
from vold_proto.v1 import status_pb2
from vold_proto.v1 import teacher_pb2 as pb
from vold_service.call import Call
from vold_service.errors import ServiceError, invalid, not_found, unavailable

from vold_teacher.backends.base import Backend
from vold_teacher.engine.engine import Engine, EngineLimits
from vold_teacher.tokenizer import Tokenizer
from vold_teacher.types import GenerateChunk, GeneratePrompt, SamplingOptions, SequenceScore
from vold_teacher.validation import (
    Limits,
    generate_prompt,
    sampling_options,
    score_options,
    score_sequences,
    token_ids,
)

log = logging.getLogger("vold.teacher")


@dataclass(frozen=True, slots=True, eq=False)
class Loaded:
    """A model that can serve."""

    engine: Engine
    tokenizer: Tokenizer
    identity: pb.Identity
    limits: Limits
    eos_ids: tuple[int, ...]


class Teacher:
    """Serves one model. Before `start` has returned, every call is UNAVAILABLE."""

    def __init__(
        self,
        *,
        name: str,
        revision: str,
        load: Callable[[], tuple[Backend, Tokenizer]],
        engine_limits: EngineLimits,
        max_top_k: int,
        max_candidates: int,
    ) -> None:
        """load: runs on the device thread, and raises OSError where the model cannot be served."""
        self.name = name
        self._revision = revision
        self._load = load
        self._engine_limits = engine_limits
        self._max_top_k = max_top_k
        self._max_candidates = max_candidates
        self._loaded: Loaded | None = None

    async def start(self) -> None:
        """Load the model and start the engine."""
        executor = ThreadPoolExecutor(max_workers=1, thread_name_prefix="device")
        backend, tokenizer = await asyncio.get_running_loop().run_in_executor(executor, self._load)
        info = backend.info
        engine = Engine(backend, self._engine_limits, executor)
        engine.start()
        eos_ids = {*info.eos_ids, *(index for name, index in tokenizer.special_ids.items() if name == "eos")}
        self._loaded = Loaded(
            engine,
            tokenizer,
            pb.Identity(
                model=self.name,
                revision=self._revision,
                weights_fingerprint=info.weights_fingerprint,
                tokenizer_fingerprint=tokenizer.fingerprint,
            ),
            Limits(
                info.vocab_size,
                info.max_sequence,
                self._max_top_k,
                self._max_candidates,
                info.capabilities,
                info.backend,
            ),
            tuple(sorted(eos_ids)),
        )
        log.info("%s is ready: weights %s, %s", self.name, info.weights_fingerprint, info.dtype)

    async def stop(self) -> None:
        if self._loaded is not None:
            await self._loaded.engine.stop()

    def _model(self, name: str) -> Loaded:
        if name and name != self.name:
            raise not_found("model", f"there is no model {name!r} here: ask for {self.name!r}, or leave it empty")
        if self._loaded is None:
            raise unavailable("the teacher is still loading its model")
        return self._loaded

    @property
    def engine(self) -> Engine:
        return self._model("").engine

    def info(self, request: pb.GetInfoRequest) -> pb.TeacherInfo:
        model = self._model(request.model)
        backend = model.engine.backend.info
        can = backend.capabilities
        return pb.TeacherInfo(
            identity=model.identity,
            vocab_size=backend.vocab_size,
            tokenizer_size=model.tokenizer.size,
            special_ids=model.tokenizer.special_ids,
            max_sequence=backend.max_sequence,
            max_top_k=model.limits.top_k,
            max_candidates=model.limits.candidates,
            dtype=backend.dtype,
            backend=backend.backend,
            server_version=version("vold"),
            capabilities=pb.Capabilities(
                temperature=can.temperature,
                top_k=model.limits.top_k > 0,
                candidates=can.candidates,
                entropy=can.entropy,
                hidden_states=can.hidden_states,
                generate=can.generate,
            ),
            eos_ids=model.eos_ids,
        )

    def tokenizer(self, request: pb.GetTokenizerRequest) -> pb.TokenizerReply:
        model = self._model(request.model)
        return pb.TokenizerReply(
            identity=model.identity,
            tokenizer_json=model.tokenizer.file,
            chat_template=model.tokenizer.chat_template,
        )

    async def score(self, request: pb.ScoreRequest, call: Call) -> pb.ScoreReply:
        """Score every completion that is fit to be; each of the others comes back with its own status."""
        model = self._model(request.model)
        expected = request.expect_weights_fingerprint
        if expected and expected != model.identity.weights_fingerprint:
            raise ServiceError(
                status_pb2.FAILED_PRECONDITION,
                f"the weights here are {model.identity.weights_fingerprint}, not {expected}: the teacher was changed; "
                "start the run again, or allow the change in its config",
                field="expect_weights_fingerprint",
            )
        options = score_options(request.options, model.limits)
        if not request.completions:
            raise invalid("completions", "completions is empty: send at least one")
        sequences, faults = score_sequences(request, options, model.limits)
        scored = await model.engine.score(sequences, call=call, priority=request.priority)
        reply = pb.ScoreReply(
            request_id=call.request_id,
            identity=model.identity,
            dtype=request.options.dtype,
            top_k=options.top_k,
            queue_seconds=scored.queue_seconds,
            compute_seconds=scored.compute_seconds,
        )
        for index, completion in enumerate(request.completions):
            score = faults[index] if index in faults else scored.scores[index]
            if isinstance(score, ServiceError):
                reply.scores.add(id=completion.id, status=score.status())
            else:
                reply.scores.append(_pack(completion.id, score, request.options.dtype))
        return reply

    async def generate(self, request: pb.GenerateRequest, call: Call) -> AsyncGenerator[pb.GenerateEvent, None]:
        """Events as completions finish. A prompt that cannot be served has one event, with its status."""
        model = self._model(request.model)
        if not model.engine.backend.info.capabilities.generate:
            raise invalid("model", f"{self.name} cannot generate on this server: it scores only")
        options = sampling_options(request.options, model.limits, model.eos_ids)
        if not request.prompts:
            raise invalid("prompts", "prompts is empty: send at least one")
        prompts: list[GeneratePrompt] = []
        for index, wanted in enumerate(request.prompts):
            try:
                prompts.append(_prompt(wanted, index, options, model))
            except ServiceError as error:
                yield pb.GenerateEvent(
                    request_id=call.request_id,
                    identity=model.identity,
                    id=wanted.id,
                    finished=True,
                    status=error.status(),
                )
        by_index = {prompt.index: prompt for prompt in prompts}
        so_far: dict[tuple[int, int], list[GenerateChunk]] = {}
        async with aclosing(model.engine.generate(prompts, options, call=call, priority=request.priority)) as chunks:
            async for chunk in chunks:
                event = pb.GenerateEvent(
                    request_id=call.request_id,
                    identity=model.identity,
                    id=request.prompts[chunk.prompt].id,
                    index=chunk.index,
                    ids=pack_ids(chunk.ids),
                    logprobs=pack_floats(chunk.logprobs),
                )
                parts = so_far.setdefault((chunk.prompt, chunk.index), [])
                parts.append(chunk)
                if chunk.finish_reason is not None:
                    del so_far[chunk.prompt, chunk.index]
                    event.finished = True
                    event.finish_reason = chunk.finish_reason
                    event.text = model.tokenizer.decode(np.concatenate([part.ids for part in parts]))
                    event.prompt_ids = pack_ids(by_index[chunk.prompt].ids)
                yield event


def _prompt(wanted: pb.GeneratePrompt, index: int, options: SamplingOptions, model: Loaded) -> GeneratePrompt:
    field = f"prompts[{index}]"
    if wanted.ids and wanted.messages:
        raise invalid(field, f"{field} has both ids and messages: send one of them")
    if wanted.messages:
        ids = model.tokenizer.render(list(wanted.messages), f"{field}.messages")
    else:
        ids = token_ids(wanted.ids, f"{field}.ids", model.limits.vocab_size)
    return generate_prompt(ids, index, options, model.limits)


def _pack(identifier: str, score: SequenceScore, dtype: "pb.DType") -> pb.CompletionScore:
    packed = pb.CompletionScore(id=identifier, logprobs=pack_floats(score.logprobs, dtype))
    if score.top_ids is not None and score.top_logprobs is not None:
        packed.top_ids = pack_ids(score.top_ids)
        packed.top_logprobs = pack_floats(score.top_logprobs, dtype)
    if score.candidate_logprobs is not None:
        packed.candidate_logprobs = pack_floats(score.candidate_logprobs, dtype)
    if score.entropy is not None:
        packed.entropy = pack_floats(score.entropy, dtype)
    if score.hidden_states is not None:
        packed.hidden_states = pack_floats(score.hidden_states, dtype)
    return packed
