"""What each command is told: a config a command, made of the components."""

from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, model_validator

from vold_trainer.config.parts import (
    BatchConfig,
    CheckpointsConfig,
    Config,
    DataConfig,
    DiagnosticsConfig,
    MissingConfig,
    ObjectiveConfig,
    OptimConfig,
    OutageConfig,
    RolloutConfig,
    RoutedTeacherConfig,
    SamplingConfig,
    StudentConfig,
    TeacherConfig,
    VerifierConfig,
)
from vold_trainer.objectives import Vold

ROLLOUT_CAP = 2.0
"""Of truncated importance sampling, where a run draws ahead and its config names no other."""


class RunConfig(Config):
    """What sft and train share."""

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
    batch: int = Field(default=48, ge=1, description="sequences a step")
    micro: int = Field(default=64, ge=1, description="sequences in one forward and backward pass")
    optim: OptimConfig = OptimConfig(lr=1e-3, warmup_steps=20, schedule="cosine")

    @model_validator(mode="before")
    @classmethod
    def _judged_by_its_loss(cls, values: Any) -> Any:
        if not isinstance(values, dict) or not isinstance(kept := values.get("checkpoints", {}), dict):
            return values
        return {**values, "checkpoints": {"metric": "loss", "mode": "min", **kept}}


class TrainConfig(RunConfig):
    """`vold train`: GRPO, distillation, or both."""

    teacher: TeacherConfig | None = TeacherConfig()
    teachers: dict[str, RoutedTeacherConfig] = Field(
        default_factory=dict, description="several teachers by name, in place of `teacher`"
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
    samples_every: int = Field(default=10, ge=1, description="steps between rollouts kept for the report")

    @model_validator(mode="before")
    @classmethod
    def _several_stand_in_for_one(cls, values: Any) -> Any:
        if isinstance(values, dict) and values.get("teachers") and "teacher" not in values:
            return {**values, "teacher": None}
        return values

    @model_validator(mode="after")
    def _has_its_services(self) -> "TrainConfig":
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
                f"objective.traces is not set, and objective {name!r} learns from given completions too: set it to a "
                "file of `vold traces`, or objective.student_share=1"
            )
        self._check_routes()
        self._correct_for_age()
        return self

    def _correct_for_age(self) -> None:
        """Completions that older weights drew are weighted for it, in every objective that can."""
        if not self.rollout.ahead:
            return
        if getattr(self.objective, "rounds", 1) > 1:
            raise ValueError(
                f"rollout.ahead is {self.rollout.ahead}, and objective.rounds above 1 draws again once the scores are "
                "known: set objective.rounds=1, or rollout.ahead=0"
            )
        if getattr(self.objective, "rollout_cap", 0.0) is None:
            self.objective = replace(self.objective, rollout_cap=ROLLOUT_CAP)  # type: ignore[arg-type]  # those without it were left out

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


class TracesConfig(Config):
    """`vold traces`: cold-start completions sampled from the teacher."""

    out: Path = Field(description="JSONL to write")
    seed: int = 0
    teacher: TeacherConfig = TeacherConfig()
    verifier: VerifierConfig | None = VerifierConfig()
    data: DataConfig = DataConfig(limit=3000)
    samples: int = Field(default=1, ge=1, description="completions of each prompt")
    max_tokens: int = Field(default=96, ge=1)
    temperature: float = Field(default=1.0, ge=0)
    top_p: float = Field(default=1.0, gt=0, le=1)
    keep: Literal["all", "correct"] = Field(default="correct", description="correct: only what the verifier accepts")
    request: int = Field(default=256, ge=1, description="prompts in one call")


class EvalConfig(Config):
    """`vold eval`: greedy and sampled answers to one or more sets, judged by a verifier."""

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
    greedy: bool = Field(default=True, description="answer every problem once with the likeliest tokens")
    sampling: SamplingConfig = SamplingConfig()
    max_tokens: int = Field(default=96, ge=1)
    batch: int = Field(default=128, ge=1, description="sequences generated together")
    samples: int = Field(default=12, ge=0, description="answers of each set kept for the report")
    threads: int = Field(default=0, ge=0, description="CPU threads of this process; 0: torch's choice")

    @model_validator(mode="after")
    def _sound(self) -> "EvalConfig":
        if not self.greedy and not self.sampling.n:
            raise ValueError("greedy is false and sampling.n is 0: nothing would be answered; set one of them")
        labels = [data.label for data in self.data]
        if twice := next((label for label in labels if labels.count(label) > 1), None):
            raise ValueError(f"data: two sets are called {twice!r}: give one of them another name")
        if "errors" in labels:
            raise ValueError("data: a set is called 'errors', which eval.json has a use for: give it another name")
        return self
