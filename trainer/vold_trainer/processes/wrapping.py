"""A model and its optimizer as accelerate prepares them: for one process, DDP, FSDP2 or DeepSpeed, as launched.

The gradient is the sum over all completions of a policy update, whatever the number of processes; each process adds the
part of its own completions.
"""

import contextlib
import warnings
from collections.abc import Iterator
from typing import Any

import torch
from accelerate.utils import DistributedType
from torch import Tensor, nn

from vold_trainer.config import OptimConfig
from vold_trainer.processes.gradients import IMAGE_PARTS, Gradients
from vold_trainer.processes.optim import make_optimizer
from vold_trainer.processes.ranks import Ranks
from vold_trainer.processes.rounding import RoundingWatch
from vold_trainer.processes.sharding import needs_lock_step, trainable_parameters
from vold_trainer.student.models import CompletionScorer, Student
from vold_trainer.student.parts import parameter_parts


class PreparedModel:
    """A student with its optimizer and schedule, prepared by accelerate.

    module: maps a batch to log-probabilities. lock_step: whether all processes need the same number of passes.
    """

    def __init__(self, student: Student, config: OptimConfig, steps: int, seed: int, ranks: Ranks) -> None:
        self.ranks = ranks
        self.accelerator = ranks.accelerator
        self.max_norm = config.max_grad_norm
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
        if ranks.size > 1:
            torch.manual_seed(seed * 1_000_003 + ranks.rank)  # dropout differs between processes

    @contextlib.contextmanager
    def micro_batch(self, *, last: bool) -> Iterator[None]:
        """Wrap the forward and backward pass of a micro-batch. last: the optimizer step follows."""
        if self.deepspeed:
            self.accelerator.sync_gradients = last
        with contextlib.nullcontext() if last or self.lock_step else self.accelerator.no_sync(self.module):
            yield

    def backward(self, loss: Tensor) -> None:
        """Run the backward pass of a part of the loss. The factor turns the averaged gradient into a sum."""
        self.accelerator.backward(loss * self.ranks.size)

    def optimizer_step(self) -> float:
        """Clip the gradient and update the weights. Returns the gradient norm before clipping."""
        norm = self.accelerator.clip_grad_norm_(self.module.parameters(), self.max_norm)
        with self.rounding.step(self.optimizer) if self.rounding is not None else contextlib.nullcontext():
            self.optimizer.step()
        self.gradients.clear()
        return float(norm)

    def scheduler_step(self) -> float:
        """Advance the schedule. Returns the learning rate before the step."""
        lr = float(self.scheduler.get_last_lr()[0])
        self.scheduler.step()
        return lr


def _may_lack_gradients(student: Student) -> bool:
    """Whether trainable parameters may get no gradient in a step: those of the vision part, if no prompt has images."""
    owners = parameter_parts(student.model)
    return any(owners[name] in IMAGE_PARTS for name in trainable_parameters(student.model))


def _fsdp_layers(student: Student) -> list[str]:
    """The classes of layers that FSDP2 gathers one by one, unless the launch names others. Vision layers are excluded
    and belong to the root: a process whose prompts have no images never runs them.
    """
    return sorted(name for name in getattr(student.model, "_no_split_modules", None) or () if "Vision" not in name)
