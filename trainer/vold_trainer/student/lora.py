"""LoRA (Hu et al., arXiv 2106.09685) through peft: low-rank matrices beside the linear layers learn, all else is still.

The adapters are put into the model itself, which stays the transformers model that it was: it is called, generates,
is wrapped and counted as before. Their weights are float32 whatever the model's are: their steps are small.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import PreTrainedModel
from vold_proto.distribution import needs

from vold_trainer.config import LoraConfig
from vold_trainer.errors import UsageError
from vold_trainer.student.parts import part_of

NAME = "default"  # peft's name for an adapter


def add_lora(model: PreTrainedModel, config: LoraConfig, path: str) -> int:
    """Put adapters beside the chosen linear layers and freeze everything else; returns how many values learn.

    They begin as no change at all: B is zero. path: the model that they belong to, noted in what is exported.
    Raises UsageError where peft is missing or nothing is chosen.
    """
    with needs("peft", "student.lora", UsageError, otherwise="set student.lora=null"):
        import peft
    names = _targets(model, config)
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
    learning = [value for name, value in model.named_parameters() if ".lora_" in name]
    for value in learning:
        value.data = value.data.float()
        value.requires_grad_(True)
    return sum(value.numel() for value in learning)


def _targets(model: PreTrainedModel, config: LoraConfig) -> list[str]:
    """Full names of the linear layers to put adapters beside."""
    owners = part_of(model)
    linear = [
        name
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and owners.get(f"{name}.weight") in config.parts
    ]
    wanted = None if config.targets == "all-linear" else set(config.targets)
    chosen = [name for name in linear if wanted is None or name.rpartition(".")[2] in wanted]
    known = sorted({name.rpartition(".")[2] for name in linear})
    where = " and ".join(config.parts)
    if wanted is not None and (missing := sorted(wanted - set(known))):
        raise UsageError(f"student.lora.targets: {missing[0]!r} is no linear layer of {where}; there are {known}")
    if not chosen:
        raise UsageError(f"student.lora.parts: {type(model).__name__} has no linear layers in {where}")
    return chosen


def has_lora(model: nn.Module) -> bool:
    """Whether adapters were put into the model."""
    return hasattr(model, "peft_config")


def merged(model: nn.Module, state: Mapping[str, Tensor] | None = None) -> dict[str, Tensor]:
    """The weights of the plain model with the adapters added to them, W + scale * B A, under the plain model's names.

    state: the whole state dict of the model, where it is gathered elsewhere; None for the model's own. Neither is
    changed. A merged matrix is worked out in float32, rounded once to the dtype of W, and kept on the CPU.
    """
    state = model.state_dict() if state is None else state
    settings: Any = model.peft_config
    config = settings[NAME]
    scale = config.lora_alpha / config.r
    out: dict[str, Tensor] = {}
    for name, value in state.items():
        if ".lora_" in name:
            continue
        out[name.replace(".base_layer.", ".")] = value
    for name, down in state.items():
        if not name.endswith(f".lora_A.{NAME}.weight"):
            continue
        layer = name.removesuffix(f".lora_A.{NAME}.weight")
        plain = state[f"{layer}.base_layer.weight"]
        up = state[f"{layer}.lora_B.{NAME}.weight"]
        change = scale * (up.float() @ down.float())
        out[f"{layer}.weight"] = (plain.float() + change).to(plain.dtype).cpu()
    return out


def save_adapter(model: nn.Module, folder: Path, state: Mapping[str, Tensor] | None = None) -> None:
    """The adapters alone in peft's own form: PeftModel.from_pretrained and servers of adapters read it."""
    folder.mkdir(parents=True, exist_ok=True)
    settings: Any = model.peft_config
    settings[NAME].save_pretrained(folder)
    state = model.state_dict() if state is None else state
    weights = {
        f"base_model.model.{name.replace(f'.{NAME}.', '.')}": value.detach().cpu().contiguous()
        for name, value in state.items()
        if ".lora_" in name
    }
    with torch.no_grad():
        save_file(weights, folder / "adapter_model.safetensors")
