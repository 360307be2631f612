"""Errors that end a command with a message instead of a traceback."""


class VoldTrainerError(Exception):
    """An error that a user of the trainer can fix."""


class UsageError(VoldTrainerError):
    """A wrong option, file or value: the message names it and gives the remedy."""


class ResumeRefusedError(UsageError):
    """A checkpoint cannot be continued with the present config or data."""


class HandshakeError(VoldTrainerError):
    """The teacher cannot serve this student."""


class RunError(VoldTrainerError):
    """The run has to stop: too many missing scores, a teacher that changed, a service that is gone."""


class DivergedError(RunError):
    """The student's values are not finite: its weights are of no use."""


class ReportedElsewhereError(VoldTrainerError):
    """Another process of the run has failed and reports the error: this process ends without a message."""


class RunReportedElsewhereError(ReportedElsewhereError, RunError):
    """Another process of the run has failed with a RunError, and reports it."""
