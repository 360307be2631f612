"""Configs of runs: YAML files validated by pydantic, with dotted overrides on the command line.

    load(TrainConfig, Path("configs/pocket_vold.yaml"), ["objective.beta=0.01", "optim.lr=1e-4"])

An unknown key is an error that names the nearest known one.
"""

from vold_trainer.config.files import ConfigT, dump, load
from vold_trainer.config.parts import (
    BatchConfig,
    CheckpointsConfig,
    Config,
    DataConfig,
    DiagnosticsConfig,
    LoraConfig,
    MissingConfig,
    ObjectiveConfig,
    OptimConfig,
    OutageConfig,
    ReferenceConfig,
    RolloutConfig,
    RoutedTeacherConfig,
    SamplingConfig,
    ScoringModelConfig,
    StudentConfig,
    TeacherConfig,
    TlsConfig,
    TokenConfig,
    ValidationConfig,
    VerifierConfig,
)
from vold_trainer.config.runs import (
    OPENAI_SCHEMES,
    REFERENCE,
    SINGLE_TEACHER,
    EvalConfig,
    RunConfig,
    SftConfig,
    TracesConfig,
    TrainConfig,
    teacher_key,
)

__all__ = [
    "OPENAI_SCHEMES",
    "REFERENCE",
    "SINGLE_TEACHER",
    "BatchConfig",
    "CheckpointsConfig",
    "Config",
    "ConfigT",
    "DataConfig",
    "DiagnosticsConfig",
    "EvalConfig",
    "LoraConfig",
    "MissingConfig",
    "ObjectiveConfig",
    "OptimConfig",
    "OutageConfig",
    "ReferenceConfig",
    "RolloutConfig",
    "RoutedTeacherConfig",
    "RunConfig",
    "SamplingConfig",
    "ScoringModelConfig",
    "SftConfig",
    "StudentConfig",
    "TeacherConfig",
    "TlsConfig",
    "TokenConfig",
    "TracesConfig",
    "TrainConfig",
    "ValidationConfig",
    "VerifierConfig",
    "dump",
    "load",
    "teacher_key",
]
