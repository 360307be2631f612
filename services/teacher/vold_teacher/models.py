"""The models that a teacher serves: loaded, found by name, and unloaded while the service runs."""

import asyncio
import logging
from collections.abc import Callable
from collections.abc import Sequence as Seq
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from vold_proto.v1 import status_pb2
from vold_proto.v1 import teacher_pb2 as pb
from vold_service.call import Call
from vold_service.errors import ServiceError, check_name, invalid, not_found, shown, unavailable
from vold_service.keys import require_admin
from vold_service.processes import Processes
from vold_service.usage import Counts, Usage

from vold_teacher.backends.base import Backend
from vold_teacher.backends.folder import text_config
from vold_teacher.engine.cache import ScoreCache
from vold_teacher.engine.engine import Engine, EngineLimits
from vold_teacher.engine.warmup import warm_up
from vold_teacher.settings import check_model_folder
from vold_teacher.texts import Texts
from vold_teacher.tokenizer import Tokenizer
from vold_teacher.validation import Limits

log = logging.getLogger("vold.teacher")


@dataclass(frozen=True, slots=True)
class ModelSpec:
    """A model to serve. name: its name on the wire. location: its folder, or the URLs of an upstream server."""

    name: str
    location: str
    revision: str = ""


@dataclass(frozen=True, slots=True, eq=False)
class LoadedModel:
    """A loaded model, ready to serve."""

    engine: Engine
    tokenizer: Tokenizer
    texts: Texts
    identity: pb.Identity
    limits: Limits
    eos_ids: tuple[int, ...]


class Models:
    """One or more models by name, each with its engine. Until a model is loaded, calls for it raise UNAVAILABLE."""

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
        max_reply_bytes: int,
        processes: Processes,
        usage: Usage,
    ) -> None:
        """models: the first is the default model. load: runs on the model's device thread, and raises OSError if the
        model cannot be served. models_dir: the folder of models that an administrator may load; None forbids loading.
        processes: for work that must not run on the event loop. usage: the account of what is computed.
        """
        self._specs = list(models)
        self._load = load
        self.engine_limits = engine_limits
        self._max_top_k = max_top_k
        self._max_candidates = max_candidates
        self._models_dir = models_dir
        self._cache = cache
        self._loading = {spec.name for spec in models}
        self._loaded: dict[str, LoadedModel] = {}
        self._max_sequences = max_sequences
        self._max_reply_bytes = max_reply_bytes
        self._processes = processes
        self._usage = usage

    async def start(self) -> None:
        """Load the models, one after another."""
        for spec in self._specs:
            await self._start_model(spec)

    async def _start_model(self, spec: ModelSpec) -> None:
        self._loading.add(spec.name)
        executor = ThreadPoolExecutor(max_workers=1, thread_name_prefix=f"device-{spec.name}")
        try:
            backend, tokenizer, warmup_seconds = await asyncio.get_running_loop().run_in_executor(
                executor, self._load_and_warm_up, spec
            )
        except ServiceError as error:  # from the warm-up of a backend in front of another engine
            executor.shutdown(wait=False)
            raise OSError(f"{spec.name} does not answer: {error.message}") from error
        except BaseException:
            executor.shutdown(wait=False)
            raise
        finally:
            self._loading.discard(spec.name)
        self._loaded[spec.name] = self._serve_model(spec, backend, tokenizer, executor)
        info = backend.info
        log.info(
            "%s is ready: weights %s, %s, warm after %.1f s",
            spec.name,
            info.weights_fingerprint,
            info.dtype,
            warmup_seconds,
        )

    def _serve_model(
        self, spec: ModelSpec, backend: Backend, tokenizer: Tokenizer, executor: ThreadPoolExecutor
    ) -> LoadedModel:
        """Start the engine of a loaded model."""
        info = backend.info
        engine = Engine(
            backend,
            self.engine_limits,
            executor,
            self._cache,
            lambda call, positions: self._usage.add(call, Counts(computed_tokens=positions)),
        )
        engine.start()
        eos_ids = {*info.eos_ids, *(index for name, index in tokenizer.special_ids.items() if name == "eos")}
        return LoadedModel(
            engine,
            tokenizer,
            Texts(tokenizer, self._processes),
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
                max_reply_bytes=self._max_reply_bytes,
            ),
            tuple(sorted(eos_ids)),
        )

    def _load_and_warm_up(self, spec: ModelSpec) -> tuple[Backend, Tokenizer, float]:
        """Backend, tokenizer and the seconds of the warm-up. Closes the backend if the warm-up fails."""
        backend, tokenizer = self._load(spec)
        try:
            return backend, tokenizer, warm_up(backend)
        except BaseException:
            backend.close()
            raise

    async def stop(self) -> None:
        models, self._loaded = self._loaded, {}
        for model in models.values():
            await model.engine.stop()
        if self._cache is not None:
            await asyncio.to_thread(self._cache.close)

    async def load(self, name: str, path: str, call: Call) -> LoadedModel:
        """Load another model from the server's models_dir. For administrators."""
        require_admin(call.tenant, "loading a model")
        if self._models_dir is None:
            raise ServiceError(
                status_pb2.PERMISSION_DENIED,
                "this server loads no models while it runs: start it with --models-dir",
                field="path",
            )
        if not name:
            raise invalid("name", "name is empty: say what the model shall be called")
        check_name("name", name)
        check_name("path", path)
        if name in self._loaded or name in self._loading:
            raise invalid("name", f"name is {name!r}, which is served already: unload it first, or choose another")
        root = self._models_dir.resolve()
        folder = (root / path).resolve()
        if not folder.is_relative_to(root):
            raise invalid("path", f"path is {path!r}, which is outside of the server's --models-dir")
        try:
            check_model_folder(folder)
            await self._start_model(ModelSpec(name, str(folder), str(text_config(folder).get("_commit_hash") or "")))
        except (OSError, ValueError) as error:
            raise invalid("path", f"path is {path!r}: {error}") from error
        return self._loaded[name]

    async def unload(self, name: str, call: Call) -> None:
        """Stop serving a model: refuse new requests, wait for those under way, then free its memory.

        For administrators.
        """
        require_admin(call.tenant, "unloading a model")
        model = self.find(name)
        if len(self._loaded) == 1:
            raise invalid("name", f"{name!r} is the only model here: load another first, or stop the server")
        del self._loaded[model.identity.model]
        await model.engine.drain()
        await model.engine.stop()
        log.info("%s is unloaded", model.identity.model)

    def find(self, name: str) -> LoadedModel:
        """The loaded model of this name; "" for the default. Raises UNAVAILABLE while it loads, or NOT_FOUND."""
        check_name("model", name)
        if not name and self._specs and self._specs[0].name in self._loading:
            name = self._specs[0].name
        model = self._loaded.get(name) if name else next(iter(self._loaded.values()), None)
        if model is not None:
            return model
        if name in self._loading or not name:
            raise unavailable(f"the teacher is still loading {name or 'its model'}")
        names = ", ".join(repr(known) for known in self._loaded)
        raise not_found("model", f"there is no model {shown(name)} here: ask for one of {names}, or leave it empty")

    @property
    def loading(self) -> list[str]:
        """Names of the models that are still loading."""
        return sorted(self._loading)

    @property
    def loaded(self) -> dict[str, LoadedModel]:
        """The loaded models by name, the default first."""
        return self._loaded
