"""A model and its optimizer as accelerate runs them: alone, in DDP, FSDP2 or DeepSpeed, as the launch says.

Each process adds its part to one gradient: the sum over all completions of a step, each weighted by its share of the
whole step. That is what one process alone would have.
"""

import contextlib
import warnings
from collections.abc import Iterator
from typing import Any

import torch
from accelerate.utils import DistributedType
from torch import Tensor, nn

from vold_trainer.config import OptimConfig
from vold_trainer.processes.optim import make_optimizer
from vold_trainer.processes.ranks import Ranks
from vold_trainer.processes.sharding import in_step, trainable_parameters
from vold_trainer.student.models import CompletionScorer, Student
from vold_trainer.student.parts import part_of


class Wrapped:
    """module: maps a batch to log-probabilities. even: whether all processes need equally many passes."""

    def __init__(self, student: Student, config: OptimConfig, steps: int, seed: int, ranks: Ranks) -> None:
        self.ranks = ranks
        self.accelerator = ranks.accelerator
        self.max_norm = config.max_grad_norm
        self.even = in_step(self.accelerator)
        self.deepspeed = self.accelerator.distributed_type == DistributedType.DEEPSPEED
        if self.deepspeed:
            settings = self.accelerator.state.deepspeed_plugin.deepspeed_config
            settings["train_micro_batch_size_per_gpu"] = 1  # a pass has as many as batch.micro, whatever this says
            settings["gradient_clipping"] = config.max_grad_norm
        optimizer, scheduler = make_optimizer(student.model, config, steps)
        self.module: nn.Module
        self.optimizer: Any
        if self.accelerator.ddp_handler is not None:
            self.accelerator.ddp_handler.find_unused_parameters = _may_rest(student)
        scorer: Any = CompletionScorer(student.model)
        scorer._no_split_modules = _blocks(student)
        with warnings.catch_warnings():
            # accelerate 1.15 gives DDP this argument always, by the name that torch 2.13 calls the old one.
            warnings.filterwarnings("ignore", "`broadcast_buffers` is deprecated", FutureWarning)
            self.module, self.optimizer = self.accelerator.prepare(scorer, optimizer)
        self.scheduler = scheduler
        if ranks.size > 1:
            torch.manual_seed(seed * 1_000_003 + ranks.rank)  # dropout: not the same in every process

    @contextlib.contextmanager
    def one_pass(self, *, last: bool) -> Iterator[None]:
        """Around the forward and backward pass of one micro-batch. last: before the optimizer's step."""
        if self.deepspeed:
            self.accelerator.sync_gradients = last
        with contextlib.nullcontext() if last or self.even else self.accelerator.no_sync(self.module):
            yield

    def add(self, loss: Tensor) -> None:
        """The backward pass of a part of the loss. The processes' gradients are averaged, and a sum is meant."""
        self.accelerator.backward(loss * self.ranks.size)

    def step(self) -> float:
        """Clip, let the optimizer change the weights; the gradient's norm before clipping."""
        norm = self.accelerator.clip_grad_norm_(self.module.parameters(), self.max_norm)
        self.optimizer.step()
        self.optimizer.zero_grad()
        return float(norm)

    def advance(self) -> float:
        """Go on in the schedule; the learning rate that was in force until now."""
        lr = float(self.scheduler.get_last_lr()[0])
        self.scheduler.step()
        return lr


def _may_rest(student: Student) -> bool:
    """Whether some of what learns may get no gradient in a step: what sees pictures, where the prompts are text."""
    owners = part_of(student.model)
    return any(owners[name] in ("vision", "projector") for name in trainable_parameters(student.model))


def _blocks(student: Student) -> list[str]:
    """The classes of layers that FSDP2 gathers one by one, where the launch names no others. Those of a vision tower
    are left to the whole: a process whose prompts have no pictures would not come by there.
    """
    return sorted(name for name in getattr(student.model, "_no_split_modules", None) or () if "Vision" not in name)
