"""The components of a run's config. Every field has its unit or meaning in its description."""

import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, Union

from pydantic import AfterValidator, BaseModel, ConfigDict, Discriminator, Field, Tag

from vold_trainer.objectives import REGISTRY, AnyObjective, Vold


class Config(BaseModel):
    model_config = ConfigDict(extra="forbid", validate_default=True)


class StudentConfig(Config):
    path: str = Field(description="folder or hub name of the student; pocket:NAME is one that ships with vold")
    dtype: Literal["float32", "bfloat16", "float16"] = Field(default="float32", description="what it computes in")
    freeze: list[str] = Field(default=["vision"], description="parts that do not learn: vision, projector, embeddings")
    trust_remote_code: bool = Field(default=False, description="run code that comes with the model")
    checkpoint_activations: bool = Field(default=False, description="compute activations twice to save memory")


def _variable(name: str) -> str:
    """Refuse what is no name of a variable, without showing it: it may be the key itself."""
    if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", name) or name.startswith("vold_"):
        raise ValueError(
            "not the name of an environment variable: put the API key into a variable and give the variable's name, so "
            "that no config and no log holds the key"
        )
    return name


VariableName = Annotated[str, AfterValidator(_variable)]


class TlsConfig(Config):
    """For grpcs:// and https:// URLs."""

    ca: Path | None = Field(default=None, description="PEM file of the CA that signed the service's certificate")
    cert: Path | None = Field(default=None, description="PEM file of the trainer's certificate, where one is asked for")
    key: Path | None = Field(default=None, description="PEM file of that certificate's key, not encrypted")


class TeacherConfig(Config):
    url: str | list[str] = Field(default="local:pocket:teacher", description="where the teacher is; several: replicas")
    model: str = Field(default="", description="which teacher of the service; empty: its default")
    api_key_env: VariableName = Field(
        default="VOLD_TEACHER_API_KEY", description="environment variable that holds the key"
    )
    tls: TlsConfig = TlsConfig()
    timeout: float = Field(default=120.0, gt=0, description="seconds for one call, retries included")
    allow_identity_change: bool = Field(default=False, description="go on when another teacher answers in mid-run")
    min_shared: float = Field(default=0.9, ge=0, le=1, description="least share of student ids that mean the same")


class RoutedTeacherConfig(TeacherConfig):
    """One of several teachers. A row asks the one that its field `teacher` names; else the one that claims one of its
    `tags`, or its `category`; else the default one.
    """

    tags: list[str] = Field(default_factory=list, description="tags and categories of rows that it teaches")
    default: bool = Field(default=False, description="teaches the rows that no other teacher claims")


class VerifierConfig(Config):
    url: str | list[str] = Field(default="local:", description="where the verifier is; local: starts one")
    name: str = Field(default="math", description="which verifier judges, where the row names none")
    parameters: dict[str, Any] = Field(default_factory=dict, description="its parameters")
    api_key_env: VariableName = Field(
        default="VOLD_VERIFIER_API_KEY", description="environment variable that holds the key"
    )
    tls: TlsConfig = TlsConfig()
    timeout: float = Field(default=120.0, gt=0, description="seconds for one call, retries included")


class DataConfig(Config):
    name: str = Field(default="", description="what results call it; else the modality, or the file's name")
    source: str = Field(default="pocket", description="pocket, or a JSONL file")
    split: Literal["train", "validation", "test"] = Field(default="train", description="of the pocket world")
    modality: Literal["text", "image"] = Field(default="text", description="of the pocket world")
    limit: int | None = Field(default=None, ge=1, description="rows to use; all of a file where absent")
    offset: int = Field(default=0, ge=0, description="rows to leave out at the start")
    seed: int = Field(default=0, description="which problems the pocket world draws")
    skip_broken: bool = Field(default=False, description="leave out broken rows instead of stopping")

    @property
    def label(self) -> str:
        return self.name or (self.modality if self.source == "pocket" else Path(self.source).stem)


class OptimConfig(Config):
    lr: float = Field(default=1e-4, gt=0)
    weight_decay: float = Field(default=0.01, ge=0)
    betas: tuple[float, float] = (0.9, 0.95)
    warmup_steps: int = Field(default=5, ge=0)
    schedule: Literal["constant", "cosine", "linear"] = "constant"
    max_grad_norm: float = Field(default=1.0, gt=0)


class RolloutConfig(Config):
    prompts: int = Field(default=16, ge=1, description="prompts a step (P)")
    group: int = Field(default=8, ge=1, description="completions of each prompt (G)")
    max_tokens: int = Field(default=96, ge=1, description="completion tokens at most")
    temperature: float = Field(default=1.0, gt=0)
    top_p: float = Field(default=1.0, gt=0, le=1)
    batch: int = Field(default=0, ge=0, description="sequences generated together by hf; 0: all of a step")
    engine: Literal["hf", "vllm"] = Field(default="hf", description="what generates: transformers here, or vLLM")
    url: str | list[str] = Field(
        default="local:", description="vllm: servers that share the prompts; local: starts one on the student"
    )
    weights: Literal["auto", "disk", "nccl", "ipc"] = Field(
        default="auto", description="vllm: how the student's weights get there; auto: as the servers are configured"
    )
    weights_folder: Path | None = Field(
        default=None, description="vllm, weights: disk: a folder that servers and trainer see; absent: a temporary one"
    )
    nccl_address: str = Field(default="", description="vllm, weights: nccl: this machine as the servers reach it")
    vllm_args: list[str] = Field(default=[], description="vllm, url: local:: further arguments of the server")
    api_key_env: VariableName = Field(
        default="VOLD_ROLLOUT_API_KEY", description="vllm: environment variable that holds the servers' API key"
    )
    timeout: float = Field(default=1800.0, gt=0, description="vllm: seconds for one completion, retries included")


def _objective_tag(value: Any) -> str:
    name = value.get("name", Vold.name) if isinstance(value, dict) else getattr(value, "name", "")
    return str(name)


if TYPE_CHECKING:
    ObjectiveConfig = AnyObjective
else:  # an objective's options are the fields of its class, and `name` says which class that is
    ObjectiveConfig = Annotated[
        Union[tuple(Annotated[kind, Tag(name)] for name, kind in REGISTRY.items())],  # noqa: UP007
        Discriminator(_objective_tag),
    ]


class BatchConfig(Config):
    size: int = Field(default=0, ge=0, description="sequences in one optimiser step; 0: all of a step's rollouts")
    micro: int = Field(default=64, ge=1, description="sequences in one forward and backward pass")


class MissingConfig(Config):
    max_share: float = Field(default=0.2, ge=0, le=1, description="of a step's rollouts that may miss a score")
    patience: int = Field(default=3, ge=1, description="steps in a row above max_share before the run stops")
