"""What `vold-teacher serve` can be told."""

import json
from pathlib import Path
from typing import Literal

from pydantic import Field
from pydantic_settings import SettingsConfigDict
from vold_service.settings import ServerSettings


class TeacherSettings(ServerSettings):
    """Each is also an environment variable, VOLD_TEACHER_ and the name in capitals."""

    model_config = SettingsConfigDict(env_prefix="VOLD_TEACHER_", extra="forbid")

    model: Path = Field(description="folder of the model: config.json, *.safetensors and the tokenizer")
    name: str = Field(default="", description="what the model is called on the wire; the folder's name where empty")
    revision: str = Field(default="", description="revision to report; the config's commit hash where empty")
    backend: Literal["torch"] = Field(default="torch", description="what computes")
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = Field(
        default="auto", description="what the weights compute in; auto: the checkpoint's, but float32 on a CPU"
    )
    device: Literal["auto", "cpu", "cuda"] = Field(default="auto", description="auto takes CUDA where there is any")
    threads: int | None = Field(default=None, ge=1, description="CPU threads of torch; its own choice where absent")
    max_sequence: int | None = Field(
        default=None, ge=2, description="tokens of prompt and completion together; the model's own where absent"
    )
    max_batch_tokens: int = Field(default=16384, ge=1, description="tokens of one batch, padding included")
    max_queue_tokens: int = Field(default=1 << 21, ge=1, description="tokens that may wait before requests are refused")
    max_rows: int = Field(default=256, ge=1, description="completions generated at once")
    max_cache_tokens: int = Field(default=1 << 16, ge=1, description="tokens of the generation's key-value cache")
    max_top_k: int = Field(default=1024, ge=0, description="largest top-k a request may ask for")
    max_sequences: int = Field(default=4096, ge=1, description="completions, or prompts, of one request")
    max_candidates: int = Field(default=1024, ge=0, description="most candidate ids at one position")


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
