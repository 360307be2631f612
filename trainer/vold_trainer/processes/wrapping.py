"""A model and its optimizer as accelerate prepares them: for one process, DDP, FSDP2 or DeepSpeed, as launched.

The gradient is the sum over all completions of a policy update, whatever the number of processes; each process adds the
part of its own completions.
"""

import contextlib
import math
import random
import warnings
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from accelerate.utils import DistributedType
from torch import Tensor, nn

from vold_trainer.config import OptimConfig
from vold_trainer.errors import RunError
from vold_trainer.processes.gradients import IMAGE_PARTS, Gradients
from vold_trainer.processes.optim import make_optimizer
from vold_trainer.processes.ranks import Ranks
from vold_trainer.processes.rounding import RoundingWatch
from vold_trainer.processes.sharding import needs_lock_step, trainable_parameters
from vold_trainer.processes.skipped import SkippedSteps
from vold_trainer.student.models import CompletionScorer, Student
from vold_trainer.student.parts import parameter_parts


class PreparedModel:
    """A student with its optimizer and schedule, prepared by accelerate.

    module: maps a batch to log-probabilities. lock_step: whether all processes need the same number of passes.
    skipped: the optimiser steps whose gradient was not finite. mid_update: whether weights or schedule have begun to
    change since `begin_step`, so that they are those of no whole step, until the training loop has counted the step
    with `end_step`.
    """

    def __init__(self, student: Student, config: OptimConfig, steps: int, seed: int, ranks: Ranks) -> None:
        self.ranks = ranks
        self.accelerator = ranks.accelerator
        self.max_norm = config.max_grad_norm
        self.seed = seed
        self.skipped = SkippedSteps(config.max_skipped)
        self.mid_update = False
        self.lock_step = needs_lock_step(self.accelerator)
        self.deepspeed = self.accelerator.distributed_type == DistributedType.DEEPSPEED
        if self.deepspeed:
            settings = self.accelerator.state.deepspeed_plugin.deepspeed_config
            settings["train_micro_batch_size_per_gpu"] = 1  # not used: a pass has batch.micro sequences
            settings["gradient_clipping"] = config.max_grad_norm
        optimizer, scheduler = make_optimizer(student.model, config, steps)
        self.module: nn.Module
        self.optimizer: Any
        if self.accelerator.ddp_handler is not None:
            self.accelerator.ddp_handler.find_unused_parameters = _may_lack_gradients(student)
        scorer: Any = CompletionScorer(student.model)
        scorer._no_split_modules = _fsdp_layers(student)
        with warnings.catch_warnings():
            # accelerate 1.15 always passes this argument to DDP, under the name that torch 2.13 deprecates.
            warnings.filterwarnings("ignore", "`broadcast_buffers` is deprecated", FutureWarning)
            self.module, self.optimizer = self.accelerator.prepare(scorer, optimizer)
        self.gradients = Gradients(student, self.module, self.optimizer)
        # DeepSpeed updates float32 copies of the weights.
        self.rounding = None if self.deepspeed else RoundingWatch(student.model, config.lr)
        self.scheduler = scheduler

    def begin_step(self, step: int) -> None:
        """Seed the random number generators for training step `step`, counted from 0, differently on each process.

        What a step draws (dropout) is so a function of seed, step and process, and no checkpoint holds a generator's
        state, which an interrupted step would have moved.
        """
        seed = (self.seed * 1_000_003 + step) * 65_537 + self.ranks.rank
        torch.manual_seed(seed % 2**63)
        np.random.seed(seed % 2**32)
        random.seed(seed)

    @contextlib.contextmanager
    def micro_batch(self, *, last: bool) -> Iterator[None]:
        """Wrap the forward and backward pass of a micro-batch. last: the optimizer step follows."""
        if self.deepspeed:
            self.accelerator.sync_gradients = last
        with contextlib.nullcontext() if last or self.lock_step else self.accelerator.no_sync(self.module):
            yield

    def backward(self, loss: Tensor) -> None:
        """Run the backward pass of a part of the loss. The factor turns the averaged gradient into a sum."""
        if self.deepspeed and self.accelerator.sync_gradients:
            self.mid_update = True  # DeepSpeed updates the weights within the last backward pass
        self.accelerator.backward(loss * self.ranks.size)

    def optimizer_step(self) -> float:
        """Clip the gradient and update the weights; without an update if the gradient is not finite. Returns the
        gradient norm before clipping.

        Raises RunError if DeepSpeed has already updated the weights with a gradient that is not finite.
        """
        norm = float(self.accelerator.clip_grad_norm_(self.module.parameters(), self.max_norm))
        skip = not math.isfinite(norm)
        self.skipped.record(norm, skipped=skip)
        if self.deepspeed:
            if skip and self.accelerator.deepspeed_engine_wrapped.engine.was_step_applied():
                raise RunError(
                    f"the gradient's norm is {norm}, and DeepSpeed has updated the weights with it: lower optim.lr, or "
                    "launch without DeepSpeed, where such a step is skipped"
                )
        # With fp16 the scaler has to see such a gradient: it skips the step itself and lowers its scale.
        elif not skip or self.accelerator.scaler is not None:
            self.mid_update = True
            with self.rounding.step(self.optimizer) if self.rounding is not None else contextlib.nullcontext():
                self.optimizer.step()
        self.gradients.clear()
        return norm

    def scheduler_step(self) -> float:
        """Advance the schedule. Returns the learning rate before the step."""
        lr = float(self.scheduler.get_last_lr()[0])
        self.mid_update = True
        self.scheduler.step()
        return lr

    def end_step(self) -> None:
        """The training step is done and counted: from here on, weights and schedule are those of a whole step again."""
        self.mid_update = False

    def free_gradients(self) -> None:
        """Drop the gradients of a step that will not be finished."""
        for parameter in self.module.parameters():
            parameter.grad = None


def _may_lack_gradients(student: Student) -> bool:
    """Whether trainable parameters may get no gradient in a step: those of the vision part, if no prompt has images."""
    owners = parameter_parts(student.model)
    return any(owners[name] in IMAGE_PARTS for name in trainable_parameters(student.model))


def _fsdp_layers(student: Student) -> list[str]:
    """The classes of layers that FSDP2 gathers one by one, unless the launch names others. Vision layers are excluded
    and belong to the root: a process whose prompts have no images never runs them.
    """
    return sorted(name for name in getattr(student.model, "_no_split_modules", None) or () if "Vision" not in name)
