"""The student at the start of the run: a copy of the weights that are trained, put in their place for a while.

The frozen weights are the student's own, so the copy is as large as what is trained: with adapters it is small, and
their B is 0, which is the student without them.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.distributed.fsdp import FSDPModule

from vold_trainer.errors import UsageError
from vold_trainer.processes.sharding import trainable_parameters
from vold_trainer.processes.wrapping import PreparedModel


class StartWeights:
    """To be made before a checkpoint is restored. Under FSDP2 each process copies its shards."""

    def __init__(self, prepared: PreparedModel, model: nn.Module) -> None:
        """Raises UsageError under DeepSpeed, which has the weights in buffers of its own."""
        if prepared.deepspeed:
            raise UsageError(
                "objective.kl_beta: under DeepSpeed the student's first weights cannot be put in the place of its "
                "present ones: give a reference.url, or launch with DDP or FSDP2"
            )
        self.module = prepared.module
        self.model = model
        self.copies = {name: value.detach().clone() for name, value in trainable_parameters(model).items()}

    @contextmanager
    def active(self) -> Iterator[None]:
        """Inside, the student has its first weights, and computes without dropout. No gradient may be pending."""
        was_training = self.module.training
        self._swap()
        try:
            self.module.eval()
            yield
        finally:
            self._swap()
            self.module.train(was_training)

    @torch.no_grad()
    def _swap(self) -> None:
        """Exchange the copies with the weights, to the last bit."""
        self._reshard()  # FSDP2 would keep what it has gathered of the others
        for name, value in trainable_parameters(self.model).items():
            copy = self.copies[name]
            present = value.detach().clone()
            value.copy_(copy)
            copy.copy_(present)

    def _reshard(self) -> None:
        shards: list[Any] = [part for part in self.module.modules() if isinstance(part, FSDPModule)]
        for shard in shards:
            shard.reshard()
