"""The settings of `vold-teacher serve`, and their checks."""

import json
import re
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, field_validator
from pydantic_settings import NoDecode, SettingsConfigDict
from vold_service.settings import MIB, ServerSettings

from vold_teacher.backends.upstream.urls import parse_urls
from vold_teacher.reply import MAX_REPLY_BYTES

OPTIONS_OF_BACKENDS = {
    "device": ("torch", "vllm"),
    "dtype": ("torch", "vllm"),
    "attention": ("torch",),
    "compile": ("torch",),
    "batch_invariant": ("torch",),
    "max_cache_tokens": ("torch",),
    "gpu_memory_utilization": ("vllm",),
    "max_num_batched_tokens": ("vllm",),
    "models_dir": ("torch", "vllm"),
    "tokenizer": ("upstream",),
    "vocab_size": ("upstream",),
    "upstream_key_env": ("upstream",),
    "upstream_model": ("upstream",),
    "upstream_timeout": ("upstream",),
    "upstream_health": ("upstream",),
}
"""Options that only some backends take, with those backends."""


class TeacherSettings(ServerSettings):
    """Each setting is also an environment variable: VOLD_TEACHER_ and its name in capitals."""

    model_config = SettingsConfigDict(env_prefix="VOLD_TEACHER_", extra="forbid")

    model: Annotated[list[str], NoDecode] = Field(
        min_length=1,
        description="folder of a model (config.json, *.safetensors and the tokenizer), or NAME=FOLDER; may be "
        "repeated, the first answers where a request names none; of an upstream server its URLs",
    )
    name: str = Field(default="", description="what a single model is called; the folder's name where empty")
    revision: str = Field(default="", description="revision to report; the config's commit hash where empty")
    models_dir: Path | None = Field(
        default=None, description="folder whose models an administrator may load while the service runs; none if absent"
    )
    backend: Literal["torch", "vllm", "upstream"] = Field(
        default="torch", description="what computes: torch, vllm (embedded), or upstream (a gateway to stock servers)"
    )
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = Field(
        default="auto", description="what the weights compute in; auto: the checkpoint's, but float32 on a CPU"
    )
    device: Literal["auto", "cpu", "cuda"] = Field(default="auto", description="auto takes CUDA where there is any")
    attention: Literal["auto", "sdpa", "flash_attention_2", "eager", "varlen"] = Field(
        default="auto",
        description="torch: how attention is computed; auto is what transformers picks; varlen packs batches on a GPU",
    )
    compile: bool = Field(default=False, description="torch: compile the model's forward pass with torch.compile")
    batch_invariant: bool = Field(
        default=False,
        description="torch: on a CPU in float32, a score is the same to the last bit in whatever batch it is computed",
    )
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
    cache_bytes: int = Field(default=256 * MIB, ge=0, description="memory for cached scores")
    cache_dir: Path | None = Field(default=None, description="folder that keeps scores across restarts; none if absent")
    cache_dir_bytes: int = Field(default=4096 * MIB, ge=MIB, description="what the cache folder may take")
    max_top_k: int = Field(default=1024, ge=0, description="largest top-k a request may ask for")
    max_sequences: int = Field(default=4096, ge=1, description="completions, or prompts, of one request")
    max_reply_bytes: int = Field(default=MAX_REPLY_BYTES, ge=1 << 16, description="bytes of one reply with scores")
    max_candidates: int = Field(default=1024, ge=0, description="most candidate ids at one position")

    @field_validator("model", mode="before")
    @classmethod
    def _split_models(cls, value: object) -> object:
        """Split the environment variable at commas. The URLs of an upstream server stay one model."""
        if isinstance(value, str | Path):
            is_url = "://" in str(value)
            return [value] if is_url else [part.strip() for part in str(value).split(",")]
        return [str(part) for part in value] if isinstance(value, list | tuple) else value

    def named_models(self) -> list[tuple[str, str]]:
        """Name and location of every model. Raises ValueError if names clash or --name is set for several models."""
        if self.name and len(self.model) > 1:
            raise ValueError(
                f"--name {self.name}: there are {len(self.model)} models; write --model NAME=FOLDER for each"
            )
        named: dict[str, str] = {}
        for argument in self.model:
            name, equals, location = argument.partition("=")
            if not equals or "/" in name or ":" in name:
                name, location = self.name or model_folder(self, argument).resolve().name, argument
            if not name or not location:
                raise ValueError(f"--model {argument!r}: write FOLDER or NAME=FOLDER")
            if name in named:
                raise ValueError(
                    f"--model {argument}: {name!r} names {named[name]} already; write NAME=FOLDER with another"
                )
            named[name] = location
        return list(named.items())


def model_folder(settings: TeacherSettings, location: str) -> Path:
    """The folder with the tokenizer and the config of the model at `location`."""
    return settings.tokenizer if settings.tokenizer is not None else Path(location)


def check_backend(settings: TeacherSettings) -> None:
    """Raise ValueError with one line for the user if the settings do not fit the backend."""
    backend = settings.backend
    for option, backends in OPTIONS_OF_BACKENDS.items():
        if option in settings.model_fields_set and backend not in backends:
            flag = "--" + option.replace("_", "-")
            raise ValueError(
                f"{flag} is an option of --backend {' and '.join(backends)}, not of {backend}: leave it out"
            )
    locations = [location for _, location in settings.named_models()]
    if backend != "upstream":
        for location in locations:
            if "://" in location:
                raise ValueError(f"--model {location}: an address needs --backend upstream")
            check_model_folder(Path(location))
        return
    if len(locations) > 1:
        raise ValueError(
            "--backend upstream serves one model, whose replicas' URLs have commas between; start a gateway for each"
        )
    parse_urls(locations[0])
    if settings.tokenizer is None:
        raise ValueError(
            "--backend upstream needs --tokenizer PATH, the folder of the model's tokenizer: stock servers send none"
        )
    if not settings.tokenizer.is_dir():
        raise ValueError(_missing("--tokenizer", settings.tokenizer, "give the folder that tokenizer.json is in"))


def _missing(option: str, path: Path, remedy: str) -> str:
    """The error for a folder that is not there."""
    if str(path).startswith("~"):
        remedy = "~ has no meaning here, write the whole path"
    elif re.fullmatch(r"[\w-][\w.-]*/[\w-][\w.-]*", str(path)):  # as models of the hub are called
        remedy = f"for the model of the hub, which is not fetched here, run `hf download {path} --local-dir {path}`"
    return f"{option} {path}: there is no such folder; {remedy}"


def check_model_folder(path: Path) -> None:
    """Raise ValueError with one line for the user if `path` is no model folder."""
    if not path.exists():
        raise ValueError(_missing("--model", path, "give the path of a saved model"))
    if not path.is_dir():
        raise ValueError(f"--model {path}: not a folder; give the folder that holds config.json and the weights")
    if not (path / "config.json").is_file() and (path / "adapter_config.json").is_file():
        raise ValueError(
            f"--model {path}: it holds an adapter and no model; merge it into its base model (`vold export` does so "
            "with a run's, merge_and_unload of peft with any other), and give the folder of what comes out"
        )
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
