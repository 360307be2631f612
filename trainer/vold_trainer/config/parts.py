"""The components of a run's config, without its services. A field's description gives its meaning or its unit."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, Union

from pydantic import BeforeValidator, Discriminator, Field, Tag, model_validator

from vold_trainer.config.base import KEY_FILE, Config, KeyFilePath, Stops, TemplateVariables, VariableName
from vold_trainer.objectives import REGISTRY, AnyObjective, Vold


class LoraConfig(Config):
    """Low-rank adapters that are trained in place of the weights."""

    r: int = Field(default=16, ge=1, description="rank")
    alpha: int = Field(default=32, ge=1, description="the adapters' change is scaled by alpha / r")
    dropout: float = Field(default=0.0, ge=0, lt=1, description="of the adapters' inputs while training")
    targets: Literal["all-linear"] | list[str] = Field(
        default="all-linear",
        description="linear layers with adapters, by the last part of their names: [q_proj, v_proj]",
    )
    parts: list[Literal["language", "vision", "projector"]] = Field(
        default=["language"], min_length=1, description="parts of the student with adapters"
    )


class TokenConfig(Config):
    """A token beside those of a tokenizer's model, as a tokenizer.json describes it."""

    id: int = Field(ge=0)
    content: str = Field(min_length=1, max_length=256, description="the text that is this token")
    special: bool = Field(default=False, description="left out of decoded texts, and never read in the texts of rows")
    normalized: bool = Field(default=False, description="found in the text after normalization, not before")
    lstrip: bool = Field(default=False, description="takes the whitespace on its left")
    rstrip: bool = Field(default=False, description="takes the whitespace on its right")
    single_word: bool = Field(default=False, description="found between words alone")


OF_TEACHER = "teacher"
"""The value of `student.add_tokens` for the tokens of the run's teacher."""


def _check_add_tokens(value: Any) -> Any:
    """Refuse what is no source of tokens, before the fields of tokens are checked."""
    if value is None or isinstance(value, list) or (isinstance(value, str) and value):
        return value
    raise ValueError(
        f"{value!r} says not where the tokens come from: write teacher, the folder or file of a tokenizer, a list of "
        "tokens with id and content, or null"
    )


class StudentConfig(Config):
    path: str = Field(description="folder or hub name of the student; pocket:NAME is a shipped checkpoint")
    dtype: Literal["float32", "bfloat16", "float16"] = Field(default="float32", description="of the weights")
    compute: Literal["bfloat16"] | None = Field(
        default=None, description="dtype of matrix products (autocast); null: that of the weights"
    )
    head_dtype: Literal["float32"] | None = Field(
        default=None, description="dtype of the output head's product; null: that of the other products"
    )
    add_tokens: Annotated[str | list[TokenConfig] | None, BeforeValidator(_check_add_tokens)] = Field(
        default=None,
        description="tokens that the student gets at their ids, such as <think>: teacher for those that the teacher "
        "has beside it; the folder, file or hub name of a tokenizer; a list; null: none",
    )
    freeze: list[str] = Field(
        default=["vision"], description="parts that are not trained: vision, projector, language, embeddings, head"
    )
    lora: LoraConfig | None = Field(default=None, description="train adapters in place of the weights (extra: peft)")
    liger: bool = Field(default=False, description="Liger's fused kernels, on CUDA (extra: liger)")
    trust_remote_code: bool = Field(default=False, description="run code from the model's folder")
    chat_template_kwargs: TemplateVariables = Field(
        default={}, description="further variables of its chat template: {enable_thinking: false}"
    )
    checkpoint_activations: bool = Field(
        default=False, description="recompute activations in the backward pass to save memory"
    )


POCKET_SPLITS = ("train", "validation", "test")


class DataConfig(Config):
    name: str = Field(default="", description="name in results; empty: the modality, or the name of the file")
    source: str = Field(
        default="pocket",
        description="pocket; a JSONL or Parquet file, a pattern of files or a folder of Parquet; a data set of the hub",
    )
    config: str = Field(default="", description="configuration of the data set, if it has several")
    split: str = Field(default="train", description="of a data set, a folder, or the pocket world")
    revision: str = Field(default="", description="commit or tag of a data set of the hub")
    modality: Literal["text", "image", "twin"] = Field(
        default="text", description="of the pocket world; twin: images for the student, text for the teacher"
    )
    columns: dict[str, str | list[str] | None] = Field(
        default_factory=dict, description="column of each field with another name; null: do not read the field"
    )
    system: str = Field(default="", description="system prompt of the rows that have none")
    template: str = Field(
        default="",
        description="the prompt, written from the row's columns (Jinja): {{problem}} Put the answer in \\boxed{}.",
    )
    image_token: str = Field(default="<image>", description="stands for an image in a text; empty: none")
    image_folder: Path | None = Field(
        default=None, description="base of relative image paths; null: the folder of the file"
    )
    check_images: Literal["header", "pixels"] = Field(
        default="header",
        description="what is read of every image before the run; pixels: slow, finds every broken image",
    )
    limit: int | None = Field(default=None, ge=1, description="number of rows; null: all rows of a file")
    offset: int = Field(default=0, ge=0, description="rows to skip at the start")
    seed: int = Field(default=0, description="of the problems of the pocket world")
    allow_change: bool = Field(default=False, description="resume although the rows are others than at the checkpoint")
    skip_broken: bool | None = Field(
        default=None,
        description="true: go on without broken rows; false: stop at one; null: stop at one that is found before the "
        "run, and go on without one that is found in it",
    )
    max_prompt_tokens: int | None = Field(
        default=None, ge=1, description="of `vold train`: tokens of a prompt, images included; null: any number"
    )
    too_long: Literal["error", "drop"] = Field(
        default="error", description="what becomes of a row whose prompt has more than max_prompt_tokens"
    )
    adapter: str = Field(
        default="", description="the benchmark whose columns the rows have: mathvista, geometry3k, ..."
    )
    wording: Literal["boxed", "own"] = Field(
        default="boxed", description="of an adapter: boxed asks for \\boxed{}, own is the benchmark's prompt"
    )

    @model_validator(mode="after")
    def _check_template(self) -> "DataConfig":
        if self.template and (self.adapter or self.source == "pocket"):
            owner = f"adapter {self.adapter!r}" if self.adapter else "the pocket world"
            raise ValueError(f"template is set, and {owner} writes its own prompts: leave one of the two out")
        return self

    @model_validator(mode="after")
    def _check_pocket_split(self) -> "DataConfig":
        if self.source == "pocket" and self.split not in POCKET_SPLITS:
            raise ValueError(f"split is {self.split!r}: the pocket world has {', '.join(POCKET_SPLITS)}")
        return self

    @property
    def label(self) -> str:
        path = Path(self.source)
        file_name = path.stem if path.suffix in (".jsonl", ".json", ".ndjson", ".parquet") else path.name
        return self.name or self.adapter or (self.modality if self.source == "pocket" else file_name)


class OptimConfig(Config):
    lr: float = Field(default=1e-4, gt=0)
    weight_decay: float = Field(default=0.01, ge=0)
    betas: tuple[float, float] = (0.9, 0.95)
    warmup_steps: int = Field(default=5, ge=0)
    schedule: Literal["constant", "cosine", "linear"] = "constant"
    min_lr: float = Field(default=0.0, ge=0, description="the rate at which a schedule that decays ends")
    max_grad_norm: float = Field(default=1.0, gt=0)
    max_skipped: int = Field(
        default=5, ge=1, description="optimiser steps in a row with a gradient that is not finite before the run stops"
    )

    @model_validator(mode="after")
    def _check_min_lr(self) -> "OptimConfig":
        if self.min_lr > self.lr:
            raise ValueError(f"min_lr is {self.min_lr:g}, above lr {self.lr:g}: a schedule decays from lr to min_lr")
        if self.min_lr and self.schedule == "constant":
            raise ValueError(f"min_lr is {self.min_lr:g}, and schedule constant has no end: choose cosine or linear")
        return self


class SamplingConfig(Config):
    """Completions sampled in an evaluation, besides the greedy completion."""

    n: int = Field(default=0, ge=0, description="sampled completions of each problem; 0: none")
    temperature: float = Field(default=1.0, gt=0)
    top_p: float = Field(default=1.0, gt=0, le=1)
    k: list[int] = Field(default_factory=list, description="k of pass@k and maj@k; empty: 1, 2, 4, ... and n")

    @model_validator(mode="after")
    def _check_k(self) -> "SamplingConfig":
        if invalid := [k for k in self.k if not 1 <= k <= self.n]:
            raise ValueError(f"k: {invalid[0]} completions cannot be chosen from n={self.n}: raise n, or leave it out")
        return self

    @property
    def ks(self) -> list[int]:
        """The k to report, in ascending order."""
        powers = [2**power for power in range(self.n.bit_length())]
        return sorted(set(self.k)) if self.k else sorted({*powers, self.n} - {0}) if self.n else []


class RolloutConfig(Config):
    prompts: int = Field(default=16, ge=1, description="prompts per step (P)")
    group: int = Field(default=8, ge=1, description="completions of each prompt (G)")
    max_tokens: int = Field(default=96, ge=1, description="most tokens of a completion")
    temperature: float = Field(default=1.0, gt=0)
    top_p: float = Field(default=1.0, gt=0, le=1)
    top_k: int = Field(default=0, ge=0, description="sample from this many of the most likely ids; 0: from all")
    min_p: float = Field(
        default=0.0, ge=0, le=1, description="sample from ids with this share of the most likely id's probability"
    )
    stop: Stops = Field(
        default=[], description="ids and texts that end a completion, besides the student's EOS; they stay in it"
    )
    max_mismatch: float | None = Field(
        default=1.0,
        gt=0,
        description="largest mean of |log pi_rollout - log pi_old| of a step's tokens, nats: 3 steps in a row above it "
        "stop the run; null: never",
    )
    batch: int = Field(default=0, ge=0, description="hf: sequences generated together; 0: all of a step")
    ahead: int = Field(default=0, ge=0, description="steps generated ahead of the policy update")
    engine: Literal["hf", "vllm"] = Field(
        default="hf", description="hf: transformers in this process; vllm: a vLLM server"
    )
    url: str | list[str] = Field(
        default="local:", description="vllm: URLs of servers that share the prompts; local: starts one with the student"
    )
    weights: Literal["auto", "disk", "nccl", "ipc"] = Field(
        default="auto", description="vllm: transfer of the student's weights; auto: as configured in the servers"
    )
    weights_folder: Path | None = Field(
        default=None,
        description="vllm, weights: disk: a folder that servers and trainer share; null: a temporary folder",
    )
    nccl_address: str = Field(default="", description="vllm, weights: nccl: address of this machine for the servers")
    image_backend: Literal["torchvision", "pillow"] = Field(
        default="torchvision", description="vllm: what the servers resize images with; pillow: they have no torchvision"
    )
    vllm_args: list[str] = Field(default=[], description="vllm, url: local:: further arguments of the server")
    api_key_env: VariableName = Field(
        default="VOLD_ROLLOUT_API_KEY", description="vllm: environment variable with the API key of the servers"
    )
    api_key_file: KeyFilePath = Field(default=None, description=f"vllm: {KEY_FILE}")
    timeout: float = Field(default=1800.0, gt=0, description="vllm: seconds for one completion, retries included")


def _objective_tag(value: Any) -> str:
    name = value.get("name", Vold.name) if isinstance(value, dict) else getattr(value, "name", "")
    return str(name)


if TYPE_CHECKING:
    ObjectiveConfig = AnyObjective
else:  # the options of an objective are the fields of its class, which `name` chooses
    ObjectiveConfig = Annotated[
        Union[tuple(Annotated[kind, Tag(name)] for name, kind in REGISTRY.items())],  # noqa: UP007
        Discriminator(_objective_tag),
    ]


class BatchConfig(Config):
    size: int = Field(default=0, ge=0, description="sequences in one optimiser step; 0: all of a step's rollouts")
    micro: int = Field(default=64, ge=1, description="sequences in one forward and backward pass")


class MissingConfig(Config):
    max_share: float = Field(default=0.2, ge=0, le=1, description="largest share of a step's rollouts without a score")
    patience: int = Field(default=3, ge=1, description="consecutive steps above max_share before the run stops")


class DiagnosticsConfig(Config):
    """Measurements of how similar student and teacher are beyond the sampled token. They do not affect training."""

    every: int = Field(default=10, ge=0, description="steps between measurements, the first step among them; 0: none")
    top_k: int = Field(default=16, ge=1, description="most likely ids of student and teacher that are compared")
    rollouts: int = Field(default=32, ge=1, description="completions of the step that are measured")


class ValidationConfig(Config):
    """The loss on traces that are not learned. It changes nothing else."""

    file: Path | None = Field(default=None, description="traces to measure the loss on, like `traces`")
    share: float = Field(
        default=0.0, ge=0, lt=1, description="share of `traces` that is held out for it, by a hash of the rows' ids"
    )
    every: int = Field(default=50, ge=1, description="steps between measurements; the last step has one too")

    @model_validator(mode="after")
    def _check_source(self) -> "ValidationConfig":
        if self.file is not None and self.share:
            raise ValueError("file and share are both set: measure on a file, or on a share of the traces")
        return self

    @property
    def on(self) -> bool:
        """Whether there is anything to measure the loss on."""
        return self.file is not None or self.share > 0


class CheckpointsConfig(Config):
    every: int = Field(
        default=50, ge=0, description="steps between checkpoints; the last step has one too; 0: by minutes alone"
    )
    minutes: float = Field(
        default=15.0, ge=0, description="a checkpoint is also due this long after the last one; 0: by steps alone"
    )
    keep_last: int = Field(default=2, ge=1, description="number of newest checkpoints to keep")
    keep_best: int = Field(default=0, ge=0, description="number of best checkpoints to keep besides them")
    metric: str = Field(default="reward/mean", description="metric in metrics.jsonl that ranks the checkpoints")
    mode: Literal["max", "min"] = Field(default="max", description="whether the largest or the smallest is the best")
    window: int = Field(
        default=10, ge=1, description="number of steps before a checkpoint over which the metric is averaged"
    )


class OutageConfig(Config):
    wait: float = Field(default=600.0, ge=0, description="seconds without a service before the run stops")
