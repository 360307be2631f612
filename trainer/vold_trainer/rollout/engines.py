"""Choice of the rollout engine."""

from vold_trainer.config import RolloutConfig
from vold_trainer.rollout.base import Engine
from vold_trainer.rollout.hf import HfEngine
from vold_trainer.student.models import Student


def make_engine(config: RolloutConfig, student: Student) -> Engine:
    """Create the engine that `rollout.engine` names. Raises UsageError if vLLM cannot serve the student."""
    if config.engine == "vllm":
        from vold_trainer.rollout.vllm import VllmEngine

        return VllmEngine(student, config)
    return HfEngine(student, batch=config.batch)
