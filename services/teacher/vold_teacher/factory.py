"""Makes the backend that the settings select."""

import os
from pathlib import Path

from vold_service.keys import KeysError, outgoing_key

from vold_teacher.backends.base import Backend
from vold_teacher.settings import TeacherSettings, model_folder


def make_backend(settings: TeacherSettings, location: str) -> Backend:
    """Load the model at `location`: a folder, or the URLs of an upstream server.

    Raises OSError with a message for the user. Each backend is imported only when it is selected: an image with one
    backend need not have the libraries of the others.
    """
    if settings.backend == "vllm":
        return _make_vllm(settings, location)
    if settings.backend == "upstream":
        return _make_upstream(settings, location)
    return _make_torch(settings, location)


def _make_torch(settings: TeacherSettings, location: str) -> Backend:
    from vold_teacher.backends.decoding import DecoderLimits
    from vold_teacher.backends.invariance import make_products_invariant
    from vold_teacher.backends.torch import TorchBackend

    if settings.batch_invariant:
        make_products_invariant()
    return TorchBackend(
        Path(location),
        dtype=settings.dtype,
        device=settings.device,
        max_sequence=settings.max_sequence,
        limits=DecoderLimits(settings.max_rows, settings.max_cache_tokens, settings.max_batch_tokens),
        attention=settings.attention,
        compiled=settings.compile,
        batch_invariant=settings.batch_invariant,
    )


def _make_vllm(settings: TeacherSettings, location: str) -> Backend:
    from vold_teacher.backends.vllm import VllmBackend, VllmOptions

    return VllmBackend(
        Path(location),
        VllmOptions(
            gpu_memory_utilization=settings.gpu_memory_utilization,
            max_num_batched_tokens=settings.max_num_batched_tokens,
            max_logprobs=_max_logprobs(settings),
            max_rows=settings.max_rows,
        ),
        dtype=settings.dtype,
        device=settings.device,
        max_sequence=settings.max_sequence,
    )


def _make_upstream(settings: TeacherSettings, location: str) -> Backend:
    from vold_teacher.backends.upstream.backend import UpstreamBackend, UpstreamOptions
    from vold_teacher.backends.upstream.pool import PoolLimits

    return UpstreamBackend(
        UpstreamOptions(
            urls=location,
            tokenizer=model_folder(settings, location),
            vocab_size=settings.vocab_size,
            key=_upstream_key(settings.upstream_key_env),
            model=settings.upstream_model,
            max_logprobs=_max_logprobs(settings),
            max_sequence=settings.max_sequence,
            max_rows=settings.max_rows,
            pool=PoolLimits(settings.upstream_timeout, settings.upstream_health),
        )
    )


def _upstream_key(variable: str) -> str:
    """Raises OSError, without the key, if the variable holds more than one."""
    try:
        return outgoing_key(os.environ.get(variable, ""), f"the environment variable {variable}")
    except KeysError as error:
        raise OSError(str(error)) from None


def _max_logprobs(settings: TeacherSettings) -> int:
    """The most log-probabilities per position: the top-k, or the candidates and the sampled token."""
    return max(settings.max_top_k, settings.max_candidates + 1)
