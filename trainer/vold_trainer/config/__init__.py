"""Configs of runs: YAML files validated by pydantic, with dotted overrides on the command line.

    load(TrainConfig, Path("configs/pocket_vold.yaml"), ["objective.beta=0.01", "optim.lr=1e-4"])

An unknown key is an error that names the nearest known one.
"""

from vold_trainer.config.base import Config
from vold_trainer.config.files import ConfigT, dump, load
from vold_trainer.config.parts import (
    OF_TEACHER,
    BatchConfig,
    CheckpointsConfig,
    DataConfig,
    DiagnosticsConfig,
    LoraConfig,
    MissingConfig,
    ObjectiveConfig,
    OptimConfig,
    OutageConfig,
    RolloutConfig,
    SamplingConfig,
    StudentConfig,
    TokenConfig,
    ValidationConfig,
)
from vold_trainer.config.runs import (
    MAX_IN_FLIGHT,
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
from vold_trainer.config.services import (
    ReferenceConfig,
    RoutedTeacherConfig,
    ScoringModelConfig,
    TeacherConfig,
    TlsConfig,
    VerifierConfig,
)

__all__ = [
    "MAX_IN_FLIGHT",
    "OF_TEACHER",
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
