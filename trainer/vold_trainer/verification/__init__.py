"""Rewards for a file of completions, outside a training run."""

from vold_trainer.verification.file import TIMEOUT_SECONDS, run_verify

__all__ = ["TIMEOUT_SECONDS", "run_verify"]
