"""Weights that are spread over the processes of a run (FSDP2, DeepSpeed's stage 3), seen whole where that is needed:
to draw completions, to hand them to an engine, to write them down.
"""

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor, distribute_tensor


def in_step(accelerator: Accelerator) -> bool:
    """Whether every forward and backward pass waits for the other processes: all need equally many."""
    return accelerator.distributed_type in (DistributedType.FSDP, DistributedType.DEEPSPEED)


def full(value: Tensor) -> Tensor:
    """All of a tensor. Waits for the other processes where they hold parts of it."""
    return value.full_tensor() if isinstance(value, DTensor) else value


@torch.no_grad()
def fill(target: Tensor, source: Tensor) -> None:
    """Copy a whole tensor into this process's part of `target`."""
    if isinstance(target, DTensor):
        source = distribute_tensor(
            source.to(target.device, target.dtype), target.device_mesh, target.placements, src_data_rank=None
        )
    target.copy_(source)


@contextlib.contextmanager
def whole(module: nn.Module) -> Iterator[None]:
    """Inside, every process has all weights and may compute without the others. All have to enter."""
    with contextlib.ExitStack() as stack:
        if parted := [value for value in module.parameters() if hasattr(value, "ds_id")]:
            from deepspeed.runtime.zero import GatheredParameters

            stack.enter_context(GatheredParameters(parted))
            stack.enter_context(_unwatched(module))
        shards: list[Any] = [part for part in module.modules() if isinstance(part, FSDPModule)]
        if shards:
            shards[0]._get_fsdp_state()._lazy_init()  # which the first forward pass would do, were it the root's
            kept = [group.post_forward_mesh_info for part in shards for group in _groups(part)]
            for part in shards:
                part.set_reshard_after_forward(False, recurse=False)
                part.unshard()
            stack.callback(_part_again, shards, kept)
        yield


@contextlib.contextmanager
def _unwatched(engine: Any) -> Iterator[None]:
    """Inside, DeepSpeed does not part the weights of a layer again as soon as it was passed."""
    watch = engine.optimizer.parameter_offload
    for parameter in engine.parameters():
        parameter.ds_active_sub_modules.clear()
    for hook in (*watch.forward_hooks, *watch.backward_hooks):
        hook.remove()
    watch.forward_hooks, watch.backward_hooks = [], []
    try:
        yield
    finally:
        watch._register_deepspeed_module(watch.module)


def _groups(shard: Any) -> Sequence[Any]:
    state = shard._get_fsdp_state()
    groups = getattr(state, "_fsdp_param_groups", None)
    return groups if groups is not None else [group for group in [state._fsdp_param_group] if group]


def _part_again(shards: Sequence[Any], kept: Sequence[Any]) -> None:
    groups = [group for part in shards for group in _groups(part)]
    for group, info in zip(groups, kept, strict=True):
        group.post_forward_mesh_info = info
    for part in shards:
        part.reshard()


def trainable_parameters(model: nn.Module) -> Mapping[str, nn.Parameter]:
    """The parameters that learn, by name."""
    return {name: value for name, value in model.named_parameters() if value.requires_grad}
