"""The first stage: traces that the teacher generates and the verifier accepts, and supervised fine-tuning on them."""

from vold_trainer.coldstart.sft import run_sft
from vold_trainer.coldstart.traces import TracesSummary, run_traces

__all__ = ["TracesSummary", "run_sft", "run_traces"]
