"""Commands that run several stages: the demo, from traces to an evaluated student, and the ablation, which compares
several objectives over several seeds.
"""

from vold_trainer.experiments.ablation import run_ablation
from vold_trainer.experiments.demo import run_demo

__all__ = ["run_ablation", "run_demo"]
