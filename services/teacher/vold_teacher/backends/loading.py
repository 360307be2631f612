"""Models for the torch backend: the weights of a folder, in a data type and on a device."""

from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from transformers import AutoConfig, AutoModelForCausalLM
from vold_packing.transformers import attention_for

from vold_teacher.backends.folder import text_config


def load_model(path: Path, dtype: str, attention: str) -> Any:
    """The model, with all of its weights from the checkpoint. Raises OSError with one line."""
    loader: Any = AutoModelForCausalLM  # its annotations leave out what output_loading_info changes
    try:
        config = AutoConfig.from_pretrained(path, trust_remote_code=False, local_files_only=True)
        model, report = loader.from_pretrained(
            path,
            config=config,
            dtype=dtype if dtype == "auto" else getattr(torch, dtype),
            use_safetensors=True,
            trust_remote_code=False,
            local_files_only=True,
            attn_implementation=attention_for(config) if attention == "auto" else attention,
            ignore_mismatched_sizes=True,  # reported below, by name
            output_loading_info=True,
        )
    except SafetensorError as error:
        raise OSError(f"cannot read the weights in {path}: {error}; copy the model there again") from error
    # ImportError: the attention implementation is not installed.
    except (ImportError, ValueError, KeyError, RuntimeError) as error:
        first = str(error).partition("\n")[0]
        raise OSError(f"cannot load a causal language model from {path}: {first}") from error
    # transformers initialises missing weights at random; the teacher's scores would be noise.
    if report["missing_keys"]:
        raise OSError(
            f"the weights in {path} lack {len(report['missing_keys'])} tensors that its config.json asks for, "
            f"{min(report['missing_keys'])} among them: copy the whole model there again"
        )
    if report["mismatched_keys"]:
        name, actual, expected = min(report["mismatched_keys"])
        raise OSError(
            f"{name} in {path} has shape {list(actual)}, where its config.json asks for {list(expected)}: "
            "the config and the weights are not of one model"
        )
    return model


def choose_dtype(dtype: str, path: Path, device: torch.device) -> str:
    """`dtype`, or for "auto" the checkpoint's dtype, but float32 on a CPU and bfloat16 in place of float32 on a GPU."""
    config = text_config(path)
    if dtype != "auto":
        return dtype
    if device.type == "cpu":
        return "float32"  # most CPUs have no arithmetic for 16-bit floats and take several times as long
    if config.get("dtype", config.get("torch_dtype")) == "float32":
        return "bfloat16"  # tensor cores compute float32 at a fraction of their speed
    return dtype


def choose_device(name: str) -> torch.device:
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cuda" and not torch.cuda.is_available():
        raise OSError("--device cuda: torch sees no CUDA device; use --device cpu or auto")
    return torch.device(name)
