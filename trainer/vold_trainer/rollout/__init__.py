"""Rollouts: completions sampled from the student."""

from vold_trainer.config import RolloutConfig
from vold_trainer.models import Student
from vold_trainer.rollout.base import Engine
from vold_trainer.rollout.hf import HfEngine


def make_engine(config: RolloutConfig, student: Student) -> Engine:
    """The engine that a config asks for."""
    return HfEngine(student, batch=config.batch)
