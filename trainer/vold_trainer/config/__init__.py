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
    RolloutConfig,
    RoutedTeacherConfig,
    SamplingConfig,
    StudentConfig,
    TeacherConfig,
    TlsConfig,
    VerifierConfig,
)
from vold_trainer.config.runs import (
    MAX_IN_FLIGHT,
    OPENAI_SCHEMES,
    SINGLE_TEACHER,
    EvalConfig,
    RunConfig,
    SftConfig,
    TracesConfig,
    TrainConfig,
    teacher_key,
)

__all__ = [
    "MAX_IN_FLIGHT",
    "OPENAI_SCHEMES",
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
    "RolloutConfig",
    "RoutedTeacherConfig",
    "RunConfig",
    "SamplingConfig",
    "SftConfig",
    "StudentConfig",
    "TeacherConfig",
    "TlsConfig",
    "TracesConfig",
    "TrainConfig",
    "VerifierConfig",
    "dump",
    "load",
    "teacher_key",
]
