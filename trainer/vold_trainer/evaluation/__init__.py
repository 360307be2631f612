"""Evaluation: greedy and sampled answers to one or more test sets, verified by the verifier.

answers.py stores the answers, so that an interrupted evaluation can continue; metrics.py computes metrics from
verdicts; results.py computes the result of a set; tables.py prints results; run.py is `vold eval`.
"""

from vold_trainer.evaluation.results import SetResult
from vold_trainer.evaluation.run import run_eval

__all__ = ["SetResult", "run_eval"]
