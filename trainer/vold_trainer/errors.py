"""Errors that end a command with a message instead of a traceback."""


class VoldTrainerError(Exception):
    """What a user of the trainer can mend."""


class UsageError(VoldTrainerError):
    """A wrong option, file or value: the message names it and says what to do."""


class HandshakeError(VoldTrainerError):
    """The teacher cannot serve this student."""


class RunError(VoldTrainerError):
    """A run that has to stop: too many missing scores, a teacher that changed, a service that is gone."""


class ToldElsewhereError(VoldTrainerError):
    """What another process of the same run ends with and says: this one ends in silence."""


class RunToldElsewhereError(ToldElsewhereError, RunError):
    """The same, where the other one's is a RunError."""
