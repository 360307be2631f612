"""Liger's fused kernels (arXiv 2410.10989) in a student: norms, rotary positions and gated layers in one pass each."""

import inspect
import logging

import torch
from transformers import PreTrainedModel
from vold_proto.distribution import needs

from vold_trainer.errors import UsageError

log = logging.getLogger("vold.liger")
LOSSES = {"cross_entropy": False, "fused_linear_cross_entropy": False}
"""Its losses are of no use here: an objective needs the log-probability of each token, and `logprobs` gives those."""


def apply_liger(model: PreTrainedModel) -> None:
    """Put the kernels for the model's family into it. Raises UsageError where they cannot run; never does without."""
    without = "set student.liger=false to train without its kernels"
    if not torch.cuda.is_available():
        raise UsageError(f"student.liger needs a CUDA device, and torch sees none: {without}")
    with needs("liger", "student.liger", UsageError, otherwise=without):
        from liger_kernel.transformers.monkey_patch import (
            MODEL_TYPE_TO_APPLY_LIGER_FN,
            _apply_liger_kernel_to_instance,
        )
    kind = model.config.model_type
    if kind not in MODEL_TYPE_TO_APPLY_LIGER_FN:
        raise UsageError(f"student.liger: liger-kernel has no kernels for model type {kind!r}: {without}")
    known = inspect.signature(MODEL_TYPE_TO_APPLY_LIGER_FN[kind]).parameters
    _apply_liger_kernel_to_instance(model=model, **{k: v for k, v in LOSSES.items() if k in known})
    log.info("liger kernels for %s", kind)
