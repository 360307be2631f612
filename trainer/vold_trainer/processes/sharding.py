"""Sharded weights (FSDP2, DeepSpeed ZeRO stage 3), gathered to generate completions, to send them to an engine, or to
write a checkpoint.
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


def needs_lock_step(accelerator: Accelerator) -> bool:
    """Whether each pass waits for the other processes, so that all processes need the same number of passes."""
    return accelerator.distributed_type in (DistributedType.FSDP, DistributedType.DEEPSPEED)


def full_tensor(value: Tensor) -> Tensor:
    """The full tensor of a shard, which is a collective operation; any other tensor as it is."""
    return value.full_tensor() if isinstance(value, DTensor) else value


@torch.no_grad()
def load_full_tensor(target: Tensor, source: Tensor) -> None:
    """Copy the full tensor `source` into `target`, or into this process's shard of it."""
    if isinstance(target, DTensor):
        source = distribute_tensor(
            source.to(target.device, target.dtype), target.device_mesh, target.placements, src_data_rank=None
        )
    target.copy_(source)


@contextlib.contextmanager
def gathered_weights(module: nn.Module) -> Iterator[None]:
    """Inside, every process holds all weights and can compute alone. All processes have to enter."""
    with contextlib.ExitStack() as stack:
        if partitioned := [value for value in module.parameters() if hasattr(value, "ds_id")]:
            from deepspeed.runtime.zero import GatheredParameters

            stack.enter_context(GatheredParameters(partitioned))
            stack.enter_context(_without_partitioning_hooks(module))
        shards: list[Any] = [submodule for submodule in module.modules() if isinstance(submodule, FSDPModule)]
        if shards:
            shards[0]._get_fsdp_state()._lazy_init()  # as the first forward pass of the root would do
            mesh_infos = [group.post_forward_mesh_info for shard in shards for group in _groups(shard)]
            for shard in shards:
                shard.set_reshard_after_forward(False, recurse=False)
                shard.unshard()
            stack.callback(_reshard, shards, mesh_infos)
        yield


@contextlib.contextmanager
def _without_partitioning_hooks(engine: Any) -> Iterator[None]:
    """Inside, DeepSpeed does not partition the weights of a layer again after its forward pass."""
    offload = engine.optimizer.parameter_offload
    for parameter in engine.parameters():
        parameter.ds_active_sub_modules.clear()
    for hook in (*offload.forward_hooks, *offload.backward_hooks):
        hook.remove()
    offload.forward_hooks, offload.backward_hooks = [], []
    try:
        yield
    finally:
        offload._register_deepspeed_module(offload.module)


def _groups(shard: Any) -> Sequence[Any]:
    state = shard._get_fsdp_state()
    groups = getattr(state, "_fsdp_param_groups", None)
    return groups if groups is not None else [group for group in [state._fsdp_param_group] if group]


def _reshard(shards: Sequence[Any], mesh_infos: Sequence[Any]) -> None:
    groups = [group for shard in shards for group in _groups(shard)]
    for group, info in zip(groups, mesh_infos, strict=True):
        group.post_forward_mesh_info = info
    for shard in shards:
        shard.reshard()


def trainable_parameters(model: nn.Module) -> Mapping[str, nn.Parameter]:
    """The parameters that require gradients, by name."""
    return {name: value for name, value in model.named_parameters() if value.requires_grad}
