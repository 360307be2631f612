"""LoRA (Hu et al., arXiv 2106.09685) through peft: only low-rank matrices beside the linear layers are trained.

The adapters are injected into the model, which remains the same transformers model for its callers. Adapter weights are
float32 whatever the dtype of the model, because their updates are small.
"""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import PreTrainedModel
from vold_proto.distribution import require_extra

from vold_trainer.config import LoraConfig
from vold_trainer.errors import UsageError
from vold_trainer.student.parts import parameter_parts
from vold_trainer.student.token_rows import ROWS, row_ids

ADAPTER_NAME = "default"  # peft's default


def add_lora(model: PreTrainedModel, config: LoraConfig, path: str) -> int:
    """Add adapters to the linear layers of the config and freeze all other parameters; return the number of trainable
    values.

    B starts at zero, so the model's outputs do not change. path: of the base model, written into exported adapters.
    Raises UsageError if peft is missing or no layer matches the config.
    """
    with require_extra("peft", "student.lora", UsageError, otherwise="set student.lora=null"):
        import peft
    names = _target_layers(model, config)
    adapter = peft.LoraConfig(
        r=config.r,
        lora_alpha=config.alpha,
        lora_dropout=config.dropout,
        target_modules=names,
        base_model_name_or_path=path,
    )
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    peft.inject_adapter_in_model(adapter, model)
    trainable = [value for name, value in model.named_parameters() if ".lora_" in name]
    for value in trainable:
        value.data = value.data.float()
        value.requires_grad_(True)
    return sum(value.numel() for value in trainable)


def _target_layers(model: PreTrainedModel, config: LoraConfig) -> list[str]:
    """Full names of the linear layers that get adapters."""
    parts = parameter_parts(model)
    linear = [
        name
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and parts.get(f"{name}.weight") in config.parts
    ]
    targets = None if config.targets == "all-linear" else set(config.targets)
    chosen = [name for name in linear if targets is None or name.rpartition(".")[2] in targets]
    known = sorted({name.rpartition(".")[2] for name in linear})
    part_names = " and ".join(config.parts)
    if targets is not None and (missing := sorted(targets - set(known))):
        raise UsageError(f"student.lora.targets: {missing[0]!r} is no linear layer of {part_names}; there are {known}")
    if not chosen:
        raise UsageError(f"student.lora.parts: {type(model).__name__} has no linear layers in {part_names}")
    return chosen


def has_lora(model: nn.Module) -> bool:
    """Whether the model has adapters."""
    return hasattr(model, "peft_config")


def merge_lora(model: nn.Module, state: Mapping[str, Tensor] | None = None) -> dict[str, Tensor]:
    """The state dict of the base model with the adapters merged into it, W + scale * B A, under its parameter names.

    state: the whole state dict of the model if it was gathered elsewhere; None: that of the model. The inputs are not
    changed. A merged matrix is computed in float32, rounded once to the dtype of W, and returned on the CPU.
    """
    state = model.state_dict() if state is None else state
    settings: Any = model.peft_config
    config = settings[ADAPTER_NAME]
    scale = config.lora_alpha / config.r
    merged: dict[str, Tensor] = {}
    for name, value in state.items():
        if ".lora_" in name:
            continue
        merged[name.replace(".base_layer.", ".")] = value
    for name, down in state.items():
        if not name.endswith(f".lora_A.{ADAPTER_NAME}.weight"):
            continue
        layer = name.removesuffix(f".lora_A.{ADAPTER_NAME}.weight")
        base = state[f"{layer}.base_layer.weight"]
        up = state[f"{layer}.lora_B.{ADAPTER_NAME}.weight"]
        change = scale * (up.float() @ down.float())
        merged[f"{layer}.weight"] = (base.float() + change).to(base.dtype).cpu()
    return merged


def save_adapter(model: nn.Module, folder: Path, state: Mapping[str, Tensor] | None = None) -> None:
    """Write the adapters alone in peft's format, which PeftModel.from_pretrained and adapter servers read, with the
    rows of added tokens as its `trainable_token_indices`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    settings: Any = model.peft_config
    config, ids = settings[ADAPTER_NAME], row_ids(model)
    state = model.state_dict() if state is None else state
    own = {id(model.get_submodule(name).get_parameter(ROWS)): name for name in reversed(ids)}
    ids = {name: ids[name] for name in own.values()}  # peft ties the head's rows to the embedding's itself
    if ids:
        indices = {name.rpartition(".")[2]: rows for name, rows in ids.items()}
        config = replace(config, trainable_token_indices=indices)
    config.save_pretrained(folder)
    weights = {
        f"base_model.model.{name.replace(f'.{ADAPTER_NAME}.', '.')}": value.detach().cpu().contiguous()
        for name, value in state.items()
        if ".lora_" in name
    }
    for name in ids:
        rows = state[f"{name}.{ROWS}"].detach().cpu().contiguous()
        weights[f"base_model.model.{name}.token_adapter.trainable_tokens_delta"] = rows
    with torch.no_grad():
        save_file(weights, folder / "adapter_model.safetensors")
