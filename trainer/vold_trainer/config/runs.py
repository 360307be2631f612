"""The config of each command, composed of the components in `parts`."""

from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, model_validator

from vold_trainer.config.base import Config, Stops
from vold_trainer.config.parts import (
    BatchConfig,
    CheckpointsConfig,
    DataConfig,
    DiagnosticsConfig,
    MissingConfig,
    ObjectiveConfig,
    OptimConfig,
    OutageConfig,
    RolloutConfig,
    SamplingConfig,
    StudentConfig,
    ValidationConfig,
)
from vold_trainer.config.services import (
    ReferenceConfig,
    RoutedTeacherConfig,
    ScoringModelConfig,
    TeacherConfig,
    VerifierConfig,
)
from vold_trainer.objectives import Vold

DEFAULT_ROLLOUT_CAP = 2.0
"""Cap of truncated importance sampling for runs whose completions come from other probabilities than the trainer's
float32: of older weights, of another engine, or in another dtype. If the config sets none.
"""


OPENAI_SCHEMES = ("openai+http://", "openai+https://")
"""Of the URL of an endpoint of OpenAI's API, which `vold traces` takes."""

MAX_IN_FLIGHT = 1 << 14
"""Completions of `vold traces` at a time at one replica."""

SINGLE_TEACHER = ""
"""The teacher's name in a run that has one teacher."""

REFERENCE = ":reference"
"""The name, beside the teachers', of a reference that is a service."""


def teacher_key(name: str) -> str:
    """The config's key of the teacher `name`; of the only teacher if it is empty; of the reference."""
    if name == REFERENCE:
        return "reference"
    return f"teachers.{name}" if name else "teacher"


class RunConfig(Config):
    """The settings that sft and train share."""

    out: Path = Field(description="the run's folder")
    seed: int = 0
    student: StudentConfig
    threads: int = Field(default=0, ge=0, description="CPU threads of this process; 0: torch's choice")
    trackers: list[str] = Field(
        default_factory=list, description="accelerate trackers: tensorboard, wandb, trackio, ..."
    )
    checkpoints: CheckpointsConfig = CheckpointsConfig()
    steps: int


class SftConfig(RunConfig):
    """`vold sft`: completion-only loss on traces, vision tower frozen."""

    traces: Path = Field(description="JSONL of `vold traces`, or JSONL or Parquet like it: messages, completion")
    steps: int = Field(default=250, ge=1)
    batch: int = Field(default=48, ge=1, description="sequences per step")
    micro: int = Field(default=64, ge=1, description="sequences in one forward and backward pass")
    columns: dict[str, str | list[str] | None] = Field(
        default_factory=dict, description="of the traces, as data.columns of `vold train`; completion may be mapped too"
    )
    limit: int | None = Field(default=None, ge=1, description="number of traces; null: all of the file")
    skip_broken: bool | None = Field(default=None, description="of the traces, as data.skip_broken of `vold train`")
    max_tokens: int | None = Field(
        default=None, ge=1, description="tokens of a trace, its prompt included; null: as many as the student takes"
    )
    too_long: Literal["error", "drop"] = Field(
        default="error", description="what becomes of a trace with more than max_tokens"
    )
    traces_cache: Path | None = Field(
        default=None, description="folder of the encoded traces; null: TRACES.encoded, beside the file"
    )
    validation: ValidationConfig = ValidationConfig()
    missing: MissingConfig = Field(default=MissingConfig(), description="of the traces of a step that cannot be read")
    optim: OptimConfig = OptimConfig(lr=1e-3, warmup_steps=20, schedule="cosine")

    @model_validator(mode="before")
    @classmethod
    def _rank_checkpoints_by_loss(cls, values: Any) -> Any:
        if not isinstance(values, dict) or not isinstance(checkpoints := values.get("checkpoints", {}), dict):
            return values
        return {**values, "checkpoints": {"metric": "loss", "mode": "min", **checkpoints}}


class TrainConfig(RunConfig):
    """`vold train`: GRPO, distillation, or both."""

    teacher: TeacherConfig | None = TeacherConfig()
    teachers: dict[str, RoutedTeacherConfig] = Field(
        default_factory=dict, description="several teachers by name, in place of `teacher`"
    )
    reference: ReferenceConfig | None = Field(
        default=None, description="of objective.kl_beta; null: the student as it was at the start of the run"
    )
    verifier: VerifierConfig | None = VerifierConfig()
    data: DataConfig = DataConfig()
    rollout: RolloutConfig = RolloutConfig()
    objective: ObjectiveConfig = Vold()
    optim: OptimConfig = OptimConfig()
    batch: BatchConfig = BatchConfig()
    missing: MissingConfig = MissingConfig()
    diagnostics: DiagnosticsConfig = DiagnosticsConfig()
    outage: OutageConfig = OutageConfig()
    steps: int = Field(default=60, ge=1)
    samples_every: int = Field(default=10, ge=1, description="steps between rollouts written for the report")

    @property
    def used_teachers(self) -> dict[str, TeacherConfig]:
        """The teachers that the objective needs, by name; the only teacher's name is empty."""
        if not self.objective.needs.teacher:
            return {}
        return {SINGLE_TEACHER: self.teacher} if self.teacher is not None else dict(self.teachers)

    @property
    def used_scoring_models(self) -> dict[str, ScoringModelConfig]:
        """The teachers that the objective needs and the reference, if it is a service, by name."""
        uses_reference = self.objective.kl_beta and self.reference is not None
        reference = {REFERENCE: self.reference} if uses_reference else {}
        return {**self.used_teachers, **reference}  # type: ignore[dict-item]  # None is left out

    @property
    def sampling_dtype(self) -> str | None:
        """Of the products that completions are sampled from; None if another engine decides."""
        return (self.student.compute or self.student.dtype) if self.rollout.engine == "hf" else None

    @property
    def copies_start(self) -> bool:
        """Whether the run keeps the weights of its start, as the reference."""
        return self.objective.kl_beta > 0 and self.reference is None

    @property
    def used_verifier(self) -> VerifierConfig | None:
        return self.verifier

    @model_validator(mode="before")
    @classmethod
    def _unset_default_teacher(cls, values: Any) -> Any:
        if isinstance(values, dict) and values.get("teachers") and "teacher" not in values:
            return {**values, "teacher": None}
        return values

    @model_validator(mode="after")
    def _check_services(self) -> "TrainConfig":
        name, needs = self.objective.name, self.objective.needs
        if self.teacher is not None and self.teachers:
            raise ValueError(
                f"teacher and teachers ({', '.join(self.teachers)}) are both set: set teacher=null, or drop teachers"
            )
        if needs.teacher and self.teacher is None and not self.teachers:
            raise ValueError(f"objective.name {name!r} needs a teacher: set teacher.url")
        if needs.reward and self.verifier is None:
            raise ValueError(f"objective.name {name!r} needs a verifier: set verifier.url")
        if needs.reward and self.rollout.group < 2:
            raise ValueError("rollout.group is 1: a group advantage needs at least 2 completions of each prompt")
        if needs.traces and getattr(self.objective, "traces", None) is None:
            raise ValueError(
                f"objective.traces is not set, and objective {name!r} also uses completions of a file: set it to a "
                "file of `vold traces`, or objective.student_share=1"
            )
        for key, model in self.used_scoring_models.items():
            if model.chat_template_kwargs and model.template == "student":
                raise ValueError(
                    f"{teacher_key(key)}.chat_template_kwargs are set, and its template is the student's, which has "
                    f"student.chat_template_kwargs: set {teacher_key(key)}.template=teacher, or leave them out"
                )
        if needs.traces and self.objective.kl_beta:
            raise ValueError(
                f"objective.kl_beta is {self.objective.kl_beta:g}, and objective {name!r} also uses completions of a "
                "file, from which no KL of the student can be estimated: set objective.student_share=1"
            )
        self._check_routes()
        self._set_rollout_cap()
        return self

    def _set_rollout_cap(self) -> None:
        """Enable the importance weights where completions come from other probabilities than the trainer's, in every
        objective that has them.
        """
        if self.rollout.ahead and getattr(self.objective, "rounds", 1) > 1:
            raise ValueError(
                f"rollout.ahead is {self.rollout.ahead}, and objective.rounds above 1 generates again when the "
                "scores are known: set objective.rounds=1, or rollout.ahead=0"
            )
        exact = self.rollout.engine == "hf" and self.sampling_dtype == "float32"
        if (self.rollout.ahead or not exact) and getattr(self.objective, "rollout_cap", 0.0) is None:
            self.objective = replace(self.objective, rollout_cap=DEFAULT_ROLLOUT_CAP)  # type: ignore[arg-type]  # the field exists

    def _check_routes(self) -> None:
        if len(defaults := [name for name, teacher in self.teachers.items() if teacher.default]) > 1:
            raise ValueError(f"teachers {' and '.join(defaults)} are both the default: set default=true for one only")
        claimed: dict[str, str] = {}
        for name, teacher in self.teachers.items():
            for tag in teacher.tags:
                if tag in claimed:
                    raise ValueError(
                        f"teachers.{claimed[tag]} and teachers.{name} both claim the tag {tag!r}: choose one"
                    )
                claimed[tag] = name


def _refuse_prompt_limit(data: DataConfig, command: str) -> None:
    """Raise ValueError for a limit that only `vold train` applies."""
    if data.max_prompt_tokens is not None:
        raise ValueError(
            f"data.max_prompt_tokens is {data.max_prompt_tokens}, and {command} counts no tokens of the student's: "
            "leave it out; vold train drops such rows"
        )


class TracesConfig(Config):
    """`vold traces`: cold-start completions sampled from the teacher."""

    out: Path = Field(description="JSONL to write")
    seed: int = 0
    teacher: TeacherConfig = TeacherConfig()
    verifier: VerifierConfig | None = VerifierConfig()
    data: DataConfig = DataConfig(limit=3000)
    samples: int = Field(default=1, ge=1, le=1024, description="completions of each prompt")
    max_tokens: int = Field(default=96, ge=1, description="most tokens of a completion; one that has more is dropped")
    max_trace_tokens: int | None = Field(
        default=None, ge=1, description="most tokens of prompt and completion together; null: no bound"
    )
    temperature: float = Field(default=1.0, ge=0)
    top_p: float = Field(default=1.0, gt=0, le=1)
    keep: Literal["all", "correct", "shortest-correct", "first-correct"] = Field(
        default="correct",
        description="all that end, or only what the verifier accepts: every one, or one of each prompt's samples",
    )
    in_flight: int | None = Field(
        default=None,
        ge=1,
        le=MAX_IN_FLIGHT,
        description="completions at a time at each replica; null: as many as it says that it generates at once, or 64",
    )
    outage: OutageConfig = OutageConfig()
    openai_body: dict[str, Any] = Field(
        default_factory=dict,
        description="openai+http(s)://: further fields of each request's body; null leaves a field out",
    )

    @property
    def from_openai(self) -> bool:
        """Whether the teacher is an endpoint of OpenAI's API, which gives text alone."""
        urls = self.teacher.url if isinstance(self.teacher.url, list) else [self.teacher.url]
        return any(url.strip().startswith(OPENAI_SCHEMES) for url in urls)

    @model_validator(mode="after")
    def _check_limits(self) -> "TracesConfig":
        _refuse_prompt_limit(self.data, "vold traces")
        return self

    @property
    def used_scoring_models(self) -> dict[str, ScoringModelConfig]:
        """The teachers that are services of ours."""
        return {} if self.from_openai else {SINGLE_TEACHER: self.teacher}

    @property
    def used_verifier(self) -> VerifierConfig | None:
        return self.verifier if self.keep != "all" else None


class EvalConfig(Config):
    """`vold eval`: greedy and sampled completions of one or more sets, verified by a verifier."""

    out: Path = Field(description="folder for eval.json, answers.jsonl and eval_samples.jsonl")
    seed: int = Field(default=0, description="of the sampled completions and of the bootstrap")
    student: StudentConfig
    verifier: VerifierConfig = VerifierConfig()
    data: list[DataConfig] = Field(
        default=[
            DataConfig(split="test", modality="text", limit=500),
            DataConfig(split="test", modality="image", limit=500),
        ]
    )
    greedy: bool = Field(default=True, description="generate a greedy completion of every problem")
    sampling: SamplingConfig = SamplingConfig()
    max_tokens: int = Field(default=96, ge=1)
    stop: Stops = Field(default=[], description="as rollout.stop of `vold train`")
    batch: int = Field(default=128, ge=1, description="sequences generated together")
    samples: int = Field(default=12, ge=0, description="completions of each set written for the report")
    threads: int = Field(default=0, ge=0, description="CPU threads of this process; 0: torch's choice")

    @property
    def used_scoring_models(self) -> dict[str, ScoringModelConfig]:
        return {}

    @property
    def used_verifier(self) -> VerifierConfig:
        return self.verifier

    @model_validator(mode="after")
    def _check_sets(self) -> "EvalConfig":
        if not self.greedy and not self.sampling.n:
            raise ValueError("greedy is false and sampling.n is 0: nothing would be generated; set one of them")
        for data in self.data:
            _refuse_prompt_limit(data, "vold eval")
        labels = [data.label for data in self.data]
        if duplicate := next((label for label in labels if labels.count(label) > 1), None):
            raise ValueError(f"data: two sets are called {duplicate!r}: rename one")
        if "errors" in labels:
            raise ValueError("data: a set has the name 'errors', which is a key of eval.json: rename it")
        return self


COMMANDS: dict[str, type[Config]] = {
    "traces": TracesConfig,
    "sft": SftConfig,
    "train": TrainConfig,
    "eval": EvalConfig,
}
"""The commands by their configs."""
