"""The first line of a run: in which numbers it samples and trains, and what follows from that for the loss."""

import math
from typing import Any

from accelerate.utils import DistributedType

from vold_trainer.config import TrainConfig
from vold_trainer.objectives.policy import cap_of
from vold_trainer.objectives.term import TeacherTerm


def opening_line(config: TrainConfig, accelerator: Any) -> str:
    """Plain text. accelerator: of the launch."""
    parts = [_sampling(config), _updates(config)]
    if config.student.head_dtype:
        parts.append("the output head in float32")
    if mixed := _mixed(accelerator):
        parts.append(mixed)
    if any(getattr(teacher, "only", None) for teacher in config.used_teachers.values()):
        parts.append("teacher.only=used: the metrics teacher/* are over the completions that are sent")
    return "; ".join(parts)


def _sampling(config: TrainConfig) -> str:
    dtype = config.sampling_dtype
    where = config.rollout.engine + (f" samples in {dtype}" if dtype else " samples")
    if not hasattr(config.objective, "rollout_cap"):
        return f"{where}, and objective {config.objective.name!r} has no importance weights"
    cap = cap_of(config.objective)
    if cap is None:
        return f"{where}, without importance weights"
    return f"{where}: importance weights up to objective.rollout_cap {cap:g}"


def _updates(config: TrainConfig) -> str:
    rollouts = config.rollout.prompts * config.rollout.group
    count = math.ceil(rollouts / config.batch.size) if config.batch.size else 1
    if count == 1:
        return "one optimiser step a batch"
    objective = config.objective
    sampled = objective.kl_beta > 0 or (isinstance(objective, TeacherTerm) and objective.divergence in ("k2", "k3"))
    if not sampled:
        return f"{count} optimiser steps a batch"
    if objective.kl_ratio:
        return f"{count} optimiser steps a batch, divergences of sampled tokens weighed by the ratio"
    return (
        f"{count} optimiser steps a batch, and objective.kl_ratio is false: from the second on, the mean gradient of a "
        "divergence of sampled tokens is not that of the divergence"
    )


def _mixed(accelerator: Any) -> str:
    """What accelerate's own mixed precision does that student.compute does not."""
    precision = str(accelerator.mixed_precision)
    if precision == "no":
        return ""
    if accelerator.distributed_type == DistributedType.FSDP:
        return (
            f"FSDP2 with mixed_precision {precision}: norms and the residual stream are {precision} too, which they "
            "are not under student.compute (mixed_precision: no)"
        )
    return f"accelerate trains with mixed_precision {precision}, and samples without it"
