"""Rollouts: completions that the student generates, in this process or on vLLM servers that get its weights."""

from vold_trainer.rollout.base import Engine, Rollout, Sampling
from vold_trainer.rollout.engines import make_engine
from vold_trainer.rollout.hf import generate

__all__ = ["Engine", "Rollout", "Sampling", "generate", "make_engine"]
