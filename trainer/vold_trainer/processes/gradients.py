"""The gradients between optimizer steps.

DDP's buckets stay in memory for the whole run, as large as all gradients. As views of the buckets
(`gradient_as_bucket_view`), gradients take no memory of their own; but a gradient that is set to None is allocated
beside its bucket again in the next backward pass, and moves into it in the last micro-batch alone. Therefore such a
gradient is set to zero in place.
"""

from typing import Any

from torch import nn
from torch.nn.parallel import DistributedDataParallel

from vold_trainer.processes.sharding import trainable_parameters
from vold_trainer.student.models import Student
from vold_trainer.student.parts import parameter_parts

IMAGE_PARTS = ("vision", "projector")
"""The parts that get no gradient in a step whose prompts have no images."""


class Gradients:
    """Clears the gradients of a prepared module.

    A parameter of the image parts always goes back to None: zero would not mean "no gradient" to AdamW, which then
    decays its moments and its weight.
    """

    def __init__(self, student: Student, module: nn.Module, optimizer: Any) -> None:
        self.optimizer = optimizer
        in_buckets = isinstance(module, DistributedDataParallel)
        parts = parameter_parts(student.model) if in_buckets else {}
        trainable = trainable_parameters(student.model)
        self._always = [trainable[name] for name in parts if name in trainable and parts[name] not in IMAGE_PARTS]

    def clear(self) -> None:
        views = [(parameter, parameter.grad) for parameter in self._always]
        self.optimizer.zero_grad()
        for parameter, view in views:
            if view is not None:
                parameter.grad = view.zero_()
