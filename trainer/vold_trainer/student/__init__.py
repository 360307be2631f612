"""The student: loading its model, choosing its trainable parameters, encoding examples as batches, and computing
log-probabilities.
"""

from vold_trainer.student.batching import Batch, make_batch, micro_batches
from vold_trainer.student.models import Student, load_student
from vold_trainer.student.traces import Trace, read_traces

__all__ = ["Batch", "Student", "Trace", "load_student", "make_batch", "micro_batches", "read_traces"]
