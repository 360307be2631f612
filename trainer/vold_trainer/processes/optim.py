"""The optimizer and its schedule."""

import math
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import AdamW
from torch.optim.lr_scheduler import LambdaLR, LRScheduler

from vold_trainer.config import OptimConfig
from vold_trainer.errors import UsageError
from vold_trainer.processes.sharding import load_full_tensor


def require_trainable_parameters(model: nn.Module) -> list[nn.Parameter]:
    """The parameters that train. Raises UsageError if all are frozen."""
    trainable = [value for value in model.parameters() if value.requires_grad]
    if not trainable:
        raise UsageError("student.freeze leaves nothing to train: remove a part from it")
    return trainable


def make_optimizer(model: nn.Module, config: OptimConfig, steps: int) -> tuple[AdamW, LRScheduler]:
    """AdamW with weight decay on matrices only, and a schedule of warm-up and decay over `steps`.

    On CUDA it is fused: one kernel reads and writes each value once, and needs no temporary copy of the moments.
    """
    trainable = require_trainable_parameters(model)
    groups = [
        {"params": [p for p in trainable if p.ndim >= 2], "weight_decay": config.weight_decay},
        {"params": [p for p in trainable if p.ndim < 2], "weight_decay": 0.0},
    ]
    optimizer = AdamW(groups, lr=config.lr, betas=config.betas, fused=torch.cuda.is_available() or None)
    return optimizer, LambdaLR(optimizer, partial(rate_factor, config=config, steps=steps))


def rate_factor(step: int, *, config: OptimConfig, steps: int) -> float:
    """The learning rate of step `step`, counted from 0, as a share of `config.lr`. steps: of the run.

    Of N warm-up steps the first has 1 / N and the last 1, so that no step is without effect; then the schedule decays
    towards `config.min_lr`, which it would reach after the last step.
    """
    if step < config.warmup_steps:
        return (step + 1) / config.warmup_steps
    decay_steps = max(1, steps - config.warmup_steps)
    if config.schedule == "constant":
        return 1.0
    if config.schedule == "cosine":
        left = 0.5 * (1.0 + math.cos(math.pi * min(1.0, (step - config.warmup_steps) / decay_steps)))
    else:
        left = max(0.0, (steps - step) / decay_steps)
    floor = config.min_lr / config.lr
    return floor + (1.0 - floor) * left if floor else left


def restore_state(optimizer: Any, parameter: nn.Parameter, name: str, value: Tensor) -> None:
    """Set the tensor `name` of a parameter's state to a saved full tensor. A fused optimizer has all of it on the
    parameter's device, any other has the step on the CPU.
    """
    state = optimizer.state[parameter]
    if value.ndim:
        state[name] = torch.zeros_like(parameter)
        load_full_tensor(state[name], value)
    else:
        state[name] = value.to(parameter.device) if optimizer.defaults.get("fused") else value
