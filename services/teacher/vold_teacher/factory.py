"""The backend that the settings ask for."""

import os
from pathlib import Path

from vold_teacher.backends.base import Backend
from vold_teacher.settings import TeacherSettings, model_folder


def make_backend(settings: TeacherSettings, location: str) -> Backend:
    """Load the model at `location`, a folder or an upstream's URLs. Raises OSError with a message for the user.

    Each backend is imported when it is asked for: an image that has one of them need not have the others' libraries.
    """
    most = max(settings.max_top_k, settings.max_candidates + 1)
    if settings.backend == "vllm":
        from vold_teacher.backends.vllm import VllmBackend, VllmOptions

        return VllmBackend(
            Path(location),
            VllmOptions(
                gpu_memory_utilization=settings.gpu_memory_utilization,
                max_num_batched_tokens=settings.max_num_batched_tokens,
                max_logprobs=most,
                max_rows=settings.max_rows,
            ),
            dtype=settings.dtype,
            device=settings.device,
            max_sequence=settings.max_sequence,
        )
    if settings.backend == "upstream":
        from vold_teacher.backends.upstream.backend import UpstreamBackend, UpstreamOptions
        from vold_teacher.backends.upstream.pool import PoolLimits

        return UpstreamBackend(
            UpstreamOptions(
                urls=location,
                tokenizer=model_folder(settings, location),
                vocab_size=settings.vocab_size,
                key=os.environ.get(settings.upstream_key_env, ""),
                model=settings.upstream_model,
                most=most,
                max_sequence=settings.max_sequence,
                max_rows=settings.max_rows,
                pool=PoolLimits(settings.upstream_timeout, settings.upstream_health),
            )
        )
    from vold_teacher.backends.decoding import DecoderLimits
    from vold_teacher.backends.torch import TorchBackend

    return TorchBackend(
        Path(location),
        dtype=settings.dtype,
        device=settings.device,
        max_sequence=settings.max_sequence,
        limits=DecoderLimits(settings.max_rows, settings.max_cache_tokens, settings.max_batch_tokens),
        attention=settings.attention,
        compiled=settings.compile,
    )
