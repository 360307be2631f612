"""What strings runs together: the demo, which goes from traces to a judged student, and the ablation, which trains with
several objectives and seeds and compares them. The stages of both are the same.
"""

from vold_trainer.experiments.ablation import run_ablation
from vold_trainer.experiments.demo import run_demo

__all__ = ["run_ablation", "run_demo"]
