"""The second stage: prompts become rollouts, rollouts are scored and verified, and each batch of them updates the
policy. `train` sets up a run, `loop` runs its steps.
"""

from vold_trainer.training.train import run_train

__all__ = ["run_train"]
