"""The teacher, whichever face asks: wire messages in, wire messages out. Every rule of the service is under here."""

import asyncio
import logging
from collections import Counter
from collections.abc import AsyncGenerator, Callable
from collections.abc import Sequence as Seq
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from vold_proto.arrays import pack_floats, pack_ids
from vold_proto.distribution import VERSION
from vold_proto.v1 import status_pb2
from vold_proto.v1 import teacher_pb2 as pb
from vold_service.call import Call
from vold_service.errors import ServiceError, invalid, not_found, unavailable
from vold_service.keys import require_admin
from vold_service.quota import Quotas
from vold_service.usage import Counts, Usage

from vold_teacher import metrics
from vold_teacher.backends.base import Backend
from vold_teacher.backends.folder import text_config
from vold_teacher.engine.cache import ScoreCache
from vold_teacher.engine.engine import Engine, EngineLimits
from vold_teacher.engine.warmup import warm_up
from vold_teacher.metrics import stage
from vold_teacher.settings import check_model_folder
from vold_teacher.tokenizer import Tokenizer
from vold_teacher.types import GenerateChunk, GeneratePrompt, SamplingOptions, SequenceScore
from vold_teacher.validation import (
    Limits,
    check_count,
    generate_prompt,
    sampling_options,
    score_options,
    score_sequences,
    token_ids,
    tokens_sent,
)

log = logging.getLogger("vold.teacher")


@dataclass(frozen=True, slots=True)
class ModelSpec:
    """A model to serve. name: what it is called on the wire. location: its folder, or an upstream's URLs."""

    name: str
    location: str
    revision: str = ""


@dataclass(frozen=True, slots=True, eq=False)
class Loaded:
    """A model that can serve."""

    engine: Engine
    tokenizer: Tokenizer
    identity: pb.Identity
    limits: Limits
    eos_ids: tuple[int, ...]


class Teacher:
    """Serves one model or several, by name. Before a model is loaded, every call for it is UNAVAILABLE."""

    def __init__(
        self,
        models: Seq[ModelSpec],
        *,
        load: Callable[[ModelSpec], tuple[Backend, Tokenizer]],
        engine_limits: EngineLimits,
        max_top_k: int,
        max_candidates: int,
        models_dir: Path | None = None,
        cache: ScoreCache | None = None,
        max_sequences: int,
    ) -> None:
        """models: the first answers where a request names none. load: runs on the model's device thread, and raises
        OSError where the model cannot be served. models_dir: where an administrator may load more from; None: nowhere.
        """
        self._specs = list(models)
        self._load = load
        self.engine_limits = engine_limits
        self._max_top_k = max_top_k
        self._max_candidates = max_candidates
        self._models_dir = models_dir
        self._cache = cache
        self._loading = {spec.name for spec in models}
        self._models: dict[str, Loaded] = {}
        self._max_sequences = max_sequences
        self.quotas = Quotas()
        self.usage = Usage()

    async def start(self) -> None:
        """Load the models, one after another."""
        for spec in self._specs:
            await self._start(spec)

    async def _start(self, spec: ModelSpec) -> None:
        self._loading.add(spec.name)
        executor = ThreadPoolExecutor(max_workers=1, thread_name_prefix=f"device-{spec.name}")
        try:
            (backend, tokenizer), warmed = await asyncio.get_running_loop().run_in_executor(
                executor, self._load_warm, spec
            )
        except ServiceError as error:  # of the warm-up, from a backend that others serve
            executor.shutdown(wait=False)
            raise OSError(f"{spec.name} does not answer: {error.message}") from error
        except BaseException:
            executor.shutdown(wait=False)
            raise
        finally:
            self._loading.discard(spec.name)
        info = backend.info
        engine = Engine(backend, self.engine_limits, executor, self._cache)
        engine.start()
        eos_ids = {*info.eos_ids, *(index for name, index in tokenizer.special_ids.items() if name == "eos")}
        self._models[spec.name] = Loaded(
            engine,
            tokenizer,
            pb.Identity(
                model=spec.name,
                revision=spec.revision,
                weights_fingerprint=info.weights_fingerprint,
                tokenizer_fingerprint=tokenizer.fingerprint,
            ),
            Limits(
                info.vocab_size,
                info.max_sequence,
                self._max_top_k,
                self._max_candidates,
                self._max_sequences,
                info.capabilities,
                info.backend,
            ),
            tuple(sorted(eos_ids)),
        )
        log.info(
            "%s is ready: weights %s, %s, warm after %.1f s", spec.name, info.weights_fingerprint, info.dtype, warmed
        )

    def _load_warm(self, spec: ModelSpec) -> tuple[tuple[Backend, Tokenizer], float]:
        """A model that has run once, and how long that took; nothing of it stays where it cannot."""
        backend, tokenizer = self._load(spec)
        try:
            return (backend, tokenizer), warm_up(backend)
        except BaseException:
            backend.close()
            raise

    async def stop(self) -> None:
        models, self._models = self._models, {}
        for model in models.values():
            await model.engine.stop()
        if self._cache is not None:
            await asyncio.to_thread(self._cache.close)

    async def load(self, name: str, path: str, call: Call) -> Loaded:
        """Load another model from the folder that the server was given for that. For administrators."""
        require_admin(call.tenant, "loading a model")
        if self._models_dir is None:
            raise ServiceError(
                status_pb2.PERMISSION_DENIED,
                "this server loads no models while it runs: start it with --models-dir",
                field="path",
            )
        if not name:
            raise invalid("name", "name is empty: say what the model shall be called")
        if name in self._models or name in self._loading:
            raise invalid("name", f"name is {name!r}, which is served already: unload it first, or choose another")
        root = self._models_dir.resolve()
        folder = (root / path).resolve()
        if not folder.is_relative_to(root):
            raise invalid("path", f"path is {path!r}, which is outside of the server's --models-dir")
        try:
            check_model_folder(folder)
            await self._start(ModelSpec(name, str(folder), str(text_config(folder).get("_commit_hash") or "")))
        except (OSError, ValueError) as error:
            raise invalid("path", f"path is {path!r}: {error}") from error
        return self._models[name]

    async def unload(self, name: str, call: Call) -> None:
        """Stop serving a model: no new requests, then, when those under way are done, free what it holds."""
        require_admin(call.tenant, "unloading a model")
        model = self._model(name)
        if len(self._models) == 1:
            raise invalid("name", f"{name!r} is the only model here: load another first, or stop the server")
        del self._models[model.identity.model]
        await model.engine.drained()
        await model.engine.stop()
        log.info("%s is unloaded", model.identity.model)

    def _model(self, name: str) -> Loaded:
        if not name and self._specs and self._specs[0].name in self._loading:
            name = self._specs[0].name
        model = self._models.get(name) if name else next(iter(self._models.values()), None)
        if model is not None:
            return model
        if name in self._loading or not name:
            raise unavailable(f"the teacher is still loading {name or 'its model'}")
        names = ", ".join(repr(known) for known in self._models)
        raise not_found("model", f"there is no model {name!r} here: ask for one of {names}, or leave it empty")

    def model(self, name: str) -> Loaded:
        """What serves under `name`, for a face that needs its tokenizer or its limits."""
        return self._model(name)

    @property
    def loading(self) -> list[str]:
        """Names of the models that cannot serve yet."""
        return sorted(self._loading)

    @property
    def models(self) -> dict[str, Loaded]:
        """What can serve, by name, the default first."""
        return self._models

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
            server_version=VERSION,
            capabilities=pb.Capabilities(
                temperature=can.temperature,
                top_k=model.limits.top_k > 0,
                candidates=can.candidates,
                entropy=can.entropy,
                hidden_states=can.hidden_states,
                generate=can.generate,
                ranks=can.ranks,
                seed=can.seed,
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

    def usage_of(self, request: pb.GetUsageRequest, call: Call) -> pb.UsageReply:
        """What the caller may see: its own, or everybody's where it administers the service."""
        tenant = request.tenant
        if not call.tenant.admin:
            if tenant not in ("", call.tenant.name):
                require_admin(call.tenant, f"the usage of {tenant!r}")
            tenant = call.tenant.name
        rows = (pb.Usage(tenant=name, run_id=run, **asdict(counts)) for name, run, counts in self.usage.of(tenant))
        return pb.UsageReply(usage=rows, since=self.usage.since)

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
        limits = model.limits.for_tenant(call.tenant)
        options = score_options(request.options, limits)
        check_count("completions", len(request.completions), limits)
        check_count("prompts", len(request.prompts), limits)
        with stage("parse"):
            sequences, faults = score_sequences(request, options, limits)
        with self.quotas.admit(call.tenant, tokens_sent(request, sequences)):
            scored = await model.engine.score(sequences, call=call, priority=request.priority)
        tokens = sum(
            len(sequences[index].completion)
            for index, score in scored.scores.items()
            if not isinstance(score, ServiceError)
        )
        metrics.note_scored(call.tenant.name, tokens, scored.queue_seconds, scored.compute_seconds)
        self.usage.add(call, Counts(1, tokens, scored.computed_tokens, len(scored.cached), scored.queue_seconds))
        with stage("serialize"):
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
                    reply.scores.append(_pack(completion.id, score, request.options.dtype, index in scored.cached))
        return reply

    async def generate(self, request: pb.GenerateRequest, call: Call) -> AsyncGenerator[pb.GenerateEvent, None]:
        """Events as completions finish. A prompt that cannot be served has one event, with its status."""
        model = self._model(request.model)
        if not model.limits.capabilities.generate:
            raise invalid("model", f"{model.identity.model} cannot generate on this server: it scores only")
        limits = model.limits.for_tenant(call.tenant)
        options = sampling_options(request.options, limits, model.eos_ids)
        check_count("prompts", len(request.prompts), limits)
        prompts: list[GeneratePrompt] = []
        faults: list[pb.GenerateEvent] = []
        for index, wanted in enumerate(request.prompts):
            try:
                prompts.append(_prompt(wanted, index, options, model, limits))
            except ServiceError as error:
                faults.append(
                    pb.GenerateEvent(
                        request_id=call.request_id,
                        identity=model.identity,
                        id=wanted.id,
                        finished=True,
                        status=error.status(),
                    )
                )
        by_index = {prompt.index: prompt for prompt in prompts}
        so_far: dict[tuple[int, int], list[GenerateChunk]] = {}
        async with aclosing(self._paid(model, prompts, options, call, request.priority)) as chunks:
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
        # At the end: a call that is to be refused as a whole, and sent again, must not have begun to answer.
        for event in faults:
            yield event

    async def _paid(
        self, model: Loaded, prompts: list[GeneratePrompt], options: SamplingOptions, call: Call, priority: int
    ) -> AsyncGenerator[GenerateChunk, None]:
        """What the engine generates, counted for the caller, who pays for the most it can be; for what a completion
        turned out shorter the tokens come back when it has ended.
        """
        most = sum(len(prompt.ids) + options.n * prompt.max_tokens for prompt in prompts)
        room = {prompt.index: prompt.max_tokens for prompt in prompts}
        lengths: Counter[tuple[int, int]] = Counter()
        with self.quotas.admit(call.tenant, most) as admission:
            self.usage.add(call, Counts(requests=1))
            async with aclosing(model.engine.generate(prompts, options, call=call, priority=priority)) as chunks:
                async for chunk in chunks:
                    self.usage.add(call, Counts(generated_tokens=len(chunk.ids)))
                    lengths[chunk.prompt, chunk.index] += len(chunk.ids)
                    if chunk.finish_reason is not None:
                        admission.refund(room[chunk.prompt] - lengths[chunk.prompt, chunk.index])
                    yield chunk


def _prompt(
    wanted: pb.GeneratePrompt, index: int, options: SamplingOptions, model: Loaded, limits: Limits
) -> GeneratePrompt:
    field = f"prompts[{index}]"
    if wanted.ids and wanted.messages:
        raise invalid(field, f"{field} has both ids and messages: send one of them")
    if wanted.messages:
        ids = model.tokenizer.render(list(wanted.messages), f"{field}.messages")
    else:
        ids = token_ids(wanted.ids, f"{field}.ids", limits)
    return generate_prompt(ids, index, options, limits)


def _pack(identifier: str, score: SequenceScore, dtype: "pb.DType", cached: bool) -> pb.CompletionScore:
    packed = pb.CompletionScore(id=identifier, logprobs=pack_floats(score.logprobs, dtype), cached=cached)
    if score.top_ids is not None and score.top_logprobs is not None:
        packed.top_ids = pack_ids(score.top_ids)
        packed.top_logprobs = pack_floats(score.top_logprobs, dtype)
    if score.candidate_logprobs is not None:
        packed.candidate_logprobs = pack_floats(score.candidate_logprobs, dtype)
    if score.entropy is not None:
        packed.entropy = pack_floats(score.entropy, dtype)
    if score.hidden_states is not None:
        packed.hidden_states = pack_floats(score.hidden_states, dtype)
    if score.ranks is not None:
        packed.ranks = pack_ids(score.ranks)
    return packed
