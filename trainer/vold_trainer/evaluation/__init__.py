"""Evaluation: greedy and sampled answers to one or more sets, judged by the verifier service.

answers.py keeps the answers, so that a killed evaluation goes on; metrics.py turns verdicts into figures; results.py
says what those figures are; run.py is `vold eval`.
"""

from vold_trainer.evaluation.results import SetResult
from vold_trainer.evaluation.run import run_eval

__all__ = ["SetResult", "run_eval"]
