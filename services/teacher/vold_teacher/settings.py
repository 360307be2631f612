"""What `vold-teacher serve` can be told."""

import json
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, field_validator
from pydantic_settings import NoDecode, SettingsConfigDict
from vold_service.settings import MIB, ServerSettings


class TeacherSettings(ServerSettings):
    """Each is also an environment variable, VOLD_TEACHER_ and the name in capitals."""

    model_config = SettingsConfigDict(env_prefix="VOLD_TEACHER_", extra="forbid")

    model: Annotated[list[str], NoDecode] = Field(
        min_length=1,
        description="folder of a model (config.json, *.safetensors and the tokenizer), or NAME=FOLDER; may be "
        "repeated, the first answers where a request names none",
    )
    name: str = Field(default="", description="what a single model is called; the folder's name where empty")
    revision: str = Field(default="", description="revision to report; the config's commit hash where empty")
    models_dir: Path | None = Field(
        default=None, description="folder whose models an administrator may load while the service runs; none if absent"
    )
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
    cache_bytes: int = Field(default=256 * MIB, ge=0, description="memory for scores that may be asked for again")
    cache_dir: Path | None = Field(default=None, description="folder that keeps scores across restarts; none if absent")
    cache_dir_bytes: int = Field(default=4096 * MIB, ge=MIB, description="what the cache folder may take")
    max_top_k: int = Field(default=1024, ge=0, description="largest top-k a request may ask for")
    max_sequences: int = Field(default=4096, ge=1, description="completions, or prompts, of one request")
    max_candidates: int = Field(default=1024, ge=0, description="most candidate ids at one position")

    @field_validator("model", mode="before")
    @classmethod
    def _several(cls, value: object) -> object:
        """From the environment: one, or several with commas between."""
        if isinstance(value, str | Path):
            return [part.strip() for part in str(value).split(",")]
        return [str(part) for part in value] if isinstance(value, list | tuple) else value

    def named_models(self) -> list[tuple[str, str]]:
        """Name and location of every model. Raises ValueError where names clash or --name has nothing to name."""
        if self.name and len(self.model) > 1:
            raise ValueError(
                f"--name {self.name}: there are {len(self.model)} models; write --model NAME=FOLDER for each"
            )
        named: dict[str, str] = {}
        for given in self.model:
            name, equals, location = given.partition("=")
            if not equals or "/" in name or ":" in name:
                name, location = self.name or Path(given).resolve().name, given
            if not name or not location:
                raise ValueError(f"--model {given!r}: write FOLDER or NAME=FOLDER")
            if name in named:
                raise ValueError(
                    f"--model {given}: {name!r} names {named[name]} already; write NAME=FOLDER with another"
                )
            named[name] = location
        return list(named.items())


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


def own_revision(path: Path) -> str:
    """The commit hash that a downloaded model's config names; empty where it names none."""
    return str(json.loads((path / "config.json").read_text("utf-8")).get("_commit_hash") or "")
