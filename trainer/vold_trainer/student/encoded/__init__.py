"""Traces as token ids in files, encoded once for a machine: every process of every run maps them into its memory."""

from vold_trainer.student.encoded.files import EncodedTraces

__all__ = ["EncodedTraces"]
