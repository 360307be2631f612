"""What `vold-teacher serve` can be told."""

import json
from pathlib import Path
from typing import Literal

from pydantic import Field
from pydantic_settings import SettingsConfigDict
from vold_service.settings import ServerSettings

from vold_teacher.backends.upstream.urls import parse_urls

OPTIONS_OF_BACKENDS = {
    "device": ("torch", "vllm"),
    "dtype": ("torch", "vllm"),
    "attention": ("torch",),
    "compile": ("torch",),
    "max_cache_tokens": ("torch",),
    "gpu_memory_utilization": ("vllm",),
    "max_num_batched_tokens": ("vllm",),
    "tokenizer": ("upstream",),
    "vocab_size": ("upstream",),
    "upstream_key_env": ("upstream",),
    "upstream_model": ("upstream",),
    "upstream_timeout": ("upstream",),
    "upstream_health": ("upstream",),
}
"""Options that only some backends have."""


class TeacherSettings(ServerSettings):
    """Each is also an environment variable, VOLD_TEACHER_ and the name in capitals."""

    model_config = SettingsConfigDict(env_prefix="VOLD_TEACHER_", extra="forbid")

    model: str = Field(
        description="folder of the model: config.json, *.safetensors and the tokenizer; of an upstream server its URLs"
    )
    name: str = Field(default="", description="what the model is called on the wire; the folder's name where empty")
    revision: str = Field(default="", description="revision to report; the config's commit hash where empty")
    backend: Literal["torch", "vllm", "upstream"] = Field(
        default="torch", description="what computes: torch, vllm (embedded), or upstream (a gateway to stock servers)"
    )
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = Field(
        default="auto", description="what the weights compute in; auto: the checkpoint's, but float32 on a CPU"
    )
    device: Literal["auto", "cpu", "cuda"] = Field(default="auto", description="auto takes CUDA where there is any")
    attention: Literal["auto", "sdpa", "flash_attention_2", "eager"] = Field(
        default="auto", description="torch: how attention is computed; auto is what transformers picks"
    )
    compile: bool = Field(default=False, description="torch: compile the model's forward pass with torch.compile")
    gpu_memory_utilization: float | None = Field(
        default=None, gt=0, le=1, description="vllm: part of the device's memory; 0.8, on a CPU 0.25, where absent"
    )
    max_num_batched_tokens: int | None = Field(
        default=None,
        ge=1,
        description="vllm: tokens of one step; what keeps its logits in 4 GiB, on a CPU 1, if absent",
    )
    tokenizer: Path | None = Field(
        default=None, description="upstream: folder of the model's tokenizer, best with its config.json"
    )
    vocab_size: int | None = Field(
        default=None, ge=17, description="upstream: rows of the model's output head, where --tokenizer has no config"
    )
    upstream_key_env: str = Field(
        default="VOLD_UPSTREAM_API_KEY", description="upstream: the variable that holds the servers' API key"
    )
    upstream_model: str = Field(default="", description="upstream: the model's name there; its first where empty")
    upstream_timeout: float = Field(default=600.0, gt=0, description="upstream: seconds for one answer")
    upstream_health: float = Field(default=5.0, gt=0, description="upstream: seconds between two health checks")
    threads: int | None = Field(default=None, ge=1, description="CPU threads of torch; its own choice where absent")
    max_sequence: int | None = Field(
        default=None, ge=2, description="tokens of prompt and completion together; the model's own where absent"
    )
    max_batch_tokens: int = Field(default=16384, ge=1, description="tokens of one batch, padding included")
    max_queue_tokens: int = Field(default=1 << 21, ge=1, description="tokens that may wait before requests are refused")
    max_rows: int = Field(default=256, ge=1, description="completions generated at once")
    max_cache_tokens: int = Field(default=1 << 16, ge=1, description="tokens of the generation's key-value cache")
    max_top_k: int = Field(default=1024, ge=0, description="largest top-k a request may ask for")
    max_candidates: int = Field(default=1024, ge=0, description="most candidate ids at one position")


def model_folder(settings: TeacherSettings) -> Path:
    """Where the model's tokenizer and config are."""
    return settings.tokenizer if settings.tokenizer is not None else Path(settings.model)


def check_backend(settings: TeacherSettings) -> None:
    """Raise ValueError with a line for the user where the settings do not fit the backend."""
    backend, model = settings.backend, settings.model
    given = settings.model_fields_set
    for option, of in OPTIONS_OF_BACKENDS.items():
        if option in given and backend not in of:
            named = "--" + option.replace("_", "-")
            raise ValueError(f"{named} is an option of --backend {' and '.join(of)}, not of {backend}: leave it out")
    if backend != "upstream":
        if "://" in model:
            raise ValueError(f"--model {model}: an address needs --backend upstream")
        check_model_folder(Path(model))
        return
    parse_urls(model)
    if settings.tokenizer is None:
        raise ValueError(
            "--backend upstream needs --tokenizer PATH, the folder of the model's tokenizer: stock servers send none"
        )
    if not settings.tokenizer.is_dir():
        raise ValueError(f"--tokenizer {settings.tokenizer}: there is no such folder")


def check_model_folder(path: Path) -> None:
    """Raise ValueError with a line for the user where `path` cannot be a model."""
    if not path.exists():
        raise ValueError(f"--model {path}: there is no such folder; give the path of a saved model")
    if not path.is_dir():
        raise ValueError(f"--model {path}: not a folder; give the folder that holds config.json and the weights")
    if not (path / "config.json").is_file():
        raise ValueError(f"--model {path}: not a model's folder, it has no config.json")
    try:
        config = json.loads((path / "config.json").read_text("utf-8"))
    except ValueError as error:
        raise ValueError(f"--model {path}: its config.json is not JSON ({error}); save the model again") from error
    if not isinstance(config, dict) or not isinstance(config.get("model_type"), str):
        raise ValueError(f"--model {path}: its config.json names no model_type; save it with save_pretrained")
    if not any(path.glob("*.safetensors")):
        raise ValueError(
            f"--model {path}: it has no *.safetensors; save it with save_pretrained, nothing else is loaded"
        )
