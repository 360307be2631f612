"""The components of a run's config. Every field has its unit or meaning in its description."""

import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, Union

from pydantic import AfterValidator, BaseModel, ConfigDict, Discriminator, Field, Tag, model_validator

from vold_trainer.objectives import REGISTRY, AnyObjective, Vold


class Config(BaseModel):
    model_config = ConfigDict(extra="forbid", validate_default=True)


class LoraConfig(Config):
    """Low-rank adapters that learn in place of the weights."""

    r: int = Field(default=16, ge=1, description="rank")
    alpha: int = Field(default=32, ge=1, description="the adapters' change is scaled by alpha / r")
    dropout: float = Field(default=0.0, ge=0, lt=1, description="of the adapters' inputs while training")
    targets: Literal["all-linear"] | list[str] = Field(
        default="all-linear", description="which linear layers, by the last part of their names: [q_proj, v_proj]"
    )
    parts: list[Literal["language", "vision", "projector"]] = Field(
        default=["language"], min_length=1, description="the parts of the student that get adapters"
    )


class StudentConfig(Config):
    path: str = Field(description="folder or hub name of the student; pocket:NAME is one that ships with vold")
    dtype: Literal["float32", "bfloat16", "float16"] = Field(default="float32", description="of the weights")
    compute: Literal["bfloat16"] | None = Field(
        default=None, description="what matrix products are computed in (autocast); empty: in dtype"
    )
    freeze: list[str] = Field(
        default=["vision"], description="parts that do not learn: vision, projector, language, embeddings, head"
    )
    lora: LoraConfig | None = Field(default=None, description="learn adapters in place of the weights (extra: peft)")
    liger: bool = Field(default=False, description="Liger's fused kernels, on CUDA (extra: liger)")
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
    system: str = Field(default="", description="a system prompt that this teacher alone reads, before the row's own")
    template: Literal["student", "teacher"] = Field(
        default="student", description="whose chat template and tokenizer make the prompts that this teacher reads"
    )
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


POCKET_SPLITS = ("train", "validation", "test")


class DataConfig(Config):
    name: str = Field(default="", description="what results call it; else the modality, or the file's name")
    source: str = Field(
        default="pocket",
        description="pocket; a JSONL or Parquet file, a pattern of such or a folder of Parquet; a data set of the hub",
    )
    config: str = Field(default="", description="configuration of a data set that has several")
    split: str = Field(default="train", description="of a data set, a folder, or the pocket world")
    revision: str = Field(default="", description="commit or tag of a data set of the hub")
    modality: Literal["text", "image", "twin"] = Field(
        default="text", description="of the pocket world; twin: images, which the teacher reads as text"
    )
    columns: dict[str, str | list[str] | None] = Field(
        default_factory=dict, description="column of each field that is called otherwise; null: not to be read"
    )
    system: str = Field(default="", description="system prompt of the rows that have none")
    image_token: str = Field(default="<image>", description="stands for an image in a text; empty: nothing does")
    image_folder: Path | None = Field(default=None, description="what image paths are relative to; else their file")
    check_images: Literal["header", "pixels"] = Field(
        default="header", description="what is read of every image before the run; pixels: slow, finds all broken ones"
    )
    limit: int | None = Field(default=None, ge=1, description="rows to use; all of a file where absent")
    offset: int = Field(default=0, ge=0, description="rows to leave out at the start")
    seed: int = Field(default=0, description="which problems the pocket world draws")
    skip_broken: bool = Field(default=False, description="leave out broken rows instead of stopping")
    adapter: str = Field(
        default="", description="the benchmark whose columns the rows have: mathvista, geometry3k, ..."
    )
    wording: Literal["boxed", "own"] = Field(
        default="boxed", description="of an adapter: boxed asks for \\boxed{}, own asks as the benchmark does"
    )

    @model_validator(mode="after")
    def _the_pocket_world_has_three_splits(self) -> "DataConfig":
        if self.source == "pocket" and self.split not in POCKET_SPLITS:
            raise ValueError(f"split is {self.split!r}: the pocket world has {', '.join(POCKET_SPLITS)}")
        return self

    @property
    def label(self) -> str:
        path = Path(self.source)
        named = path.stem if path.suffix in (".jsonl", ".json", ".ndjson", ".parquet") else path.name
        return self.name or self.adapter or (self.modality if self.source == "pocket" else named)


class OptimConfig(Config):
    lr: float = Field(default=1e-4, gt=0)
    weight_decay: float = Field(default=0.01, ge=0)
    betas: tuple[float, float] = (0.9, 0.95)
    warmup_steps: int = Field(default=5, ge=0)
    schedule: Literal["constant", "cosine", "linear"] = "constant"
    max_grad_norm: float = Field(default=1.0, gt=0)


class SamplingConfig(Config):
    """Completions drawn in an evaluation, beside the greedy one."""

    n: int = Field(default=0, ge=0, description="completions drawn of each problem; 0: none")
    temperature: float = Field(default=1.0, gt=0)
    top_p: float = Field(default=1.0, gt=0, le=1)
    k: list[int] = Field(default_factory=list, description="k of pass@k and maj@k; empty: 1, 2, 4, ... and n")

    @model_validator(mode="after")
    def _enough(self) -> "SamplingConfig":
        if wrong := [k for k in self.k if not 1 <= k <= self.n]:
            raise ValueError(f"k: {wrong[0]} completions cannot be chosen from n={self.n}: raise n, or leave it out")
        return self

    @property
    def ks(self) -> list[int]:
        """The k to report, rising."""
        doubling = [2**power for power in range(self.n.bit_length())]
        return sorted(set(self.k)) if self.k else sorted({*doubling, self.n} - {0}) if self.n else []


class RolloutConfig(Config):
    prompts: int = Field(default=16, ge=1, description="prompts a step (P)")
    group: int = Field(default=8, ge=1, description="completions of each prompt (G)")
    max_tokens: int = Field(default=96, ge=1, description="completion tokens at most")
    temperature: float = Field(default=1.0, gt=0)
    top_p: float = Field(default=1.0, gt=0, le=1)
    batch: int = Field(default=0, ge=0, description="sequences generated together by hf; 0: all of a step")
    ahead: int = Field(default=0, ge=0, description="steps whose completions may be drawn before a step learns")
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


class DiagnosticsConfig(Config):
    """How alike student and teacher are, beyond the sampled token. Asked beside the scores that a step learns from."""

    every: int = Field(default=10, ge=0, description="steps between measurements, the first step among them; 0: none")
    top_k: int = Field(default=16, ge=1, description="most likely ids of each side that are compared")
    rollouts: int = Field(default=32, ge=1, description="completions of the step that are looked at")


class CheckpointsConfig(Config):
    every: int = Field(default=0, ge=0, description="steps between checkpoints, and one at the end; 0: at SIGTERM only")
    keep_last: int = Field(default=2, ge=1, description="how many of the newest are kept")
    keep_best: int = Field(default=0, ge=0, description="how many of the best are kept beside them")
    metric: str = Field(default="reward/mean", description="the figure of metrics.jsonl that says which are the best")
    mode: Literal["max", "min"] = Field(default="max", description="whether the best is the largest or the smallest")
    window: int = Field(default=10, ge=1, description="steps before a checkpoint that the figure is a mean of")


class OutageConfig(Config):
    wait: float = Field(default=600.0, ge=0, description="seconds that a service may be away before the run stops")
