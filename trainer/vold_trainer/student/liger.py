"""Liger's fused kernels (arXiv 2410.10989) for a student: norms, rotary positions and gated layers."""

import inspect
import logging

import torch
from transformers import PreTrainedModel
from vold_proto.distribution import require_extra

from vold_trainer.errors import UsageError

log = logging.getLogger("vold.liger")
LOSSES = {"cross_entropy": False, "fused_linear_cross_entropy": False}
"""Liger's losses are off: an objective needs the log-probability of each token, which `logprobs` computes."""


def apply_liger(model: PreTrainedModel) -> None:
    """Replace layers of the model by the kernels for its family. Raises UsageError if they cannot run."""
    remedy = "set student.liger=false to train without its kernels"
    if not torch.cuda.is_available():
        raise UsageError(f"student.liger needs a CUDA device, and torch sees none: {remedy}")
    with require_extra("liger", "student.liger", UsageError, otherwise=remedy):
        from liger_kernel.transformers.monkey_patch import (
            MODEL_TYPE_TO_APPLY_LIGER_FN,
            _apply_liger_kernel_to_instance,
        )
    model_type = model.config.model_type
    if model_type not in MODEL_TYPE_TO_APPLY_LIGER_FN:
        raise UsageError(f"student.liger: liger-kernel has no kernels for model type {model_type!r}: {remedy}")
    parameters = inspect.signature(MODEL_TYPE_TO_APPLY_LIGER_FN[model_type]).parameters
    _apply_liger_kernel_to_instance(model=model, **{name: on for name, on in LOSSES.items() if name in parameters})
    log.info("liger kernels for %s", model_type)
