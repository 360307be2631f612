"""The API keys that a config names: in a file, which is read again when a service refuses the key, or in a variable."""

import os
import re
import stat
from pathlib import Path
from typing import Protocol

from vold_client import KeySource

from vold_trainer.errors import UsageError

MAX_KEY_BYTES = 4096


class KeyConfig(Protocol):
    """A part of a config with a key."""

    api_key_env: str
    api_key_file: Path | None


class KeyFile:
    """A key in a file. Calling it reads the file again; if the file cannot be used then, the key stays as it was, and
    `problem` says why. field: the config's field. Raises UsageError if the file cannot be used at first.
    """

    def __init__(self, file: Path, field: str) -> None:
        self.file = file
        self.field = field
        self.problem = ""
        self._key = self._read()

    def __call__(self) -> str:
        try:
            self._key, self.problem = self._read(), ""
        except UsageError as error:  # for example in the middle of a rotation
            self.problem = str(error)
        return self._key

    def _read(self) -> str:
        name = f"{self.field} {str(self.file)!r}"
        try:
            if not stat.S_ISREG(self.file.stat().st_mode):
                raise UsageError(f"{name} is no regular file, and a key is read several times: give a file")
            with self.file.open("rb") as stream:
                content = stream.read(MAX_KEY_BYTES + 1)
        except OSError as error:
            raise UsageError(f"{name} cannot be read ({error.strerror}): give a file that holds the key") from error
        return checked_key(content.decode("latin-1"), name, "write the key into it, alone")


def checked_key(text: str, source: str, remedy: str) -> str:
    """The key without the white space around it. Raises UsageError, without the key, if there is none, or more than a
    key. source: where the text is from.
    """
    key = text.strip()
    if not key:
        raise UsageError(f"{source} is empty: {remedy}")
    if len(text) > MAX_KEY_BYTES or not re.fullmatch(r"[\x21-\x7e]+", key):
        raise UsageError(f"{source} holds more than an API key, which is one word of ASCII: {remedy}")
    return key


def api_key(config: KeyConfig, section: str) -> KeySource:
    """The key for a client: of the file if the config names one, otherwise of the environment variable. section: of the
    config, for errors. Raises UsageError if the key cannot be used.
    """
    if config.api_key_file is not None:
        return KeyFile(config.api_key_file, f"{section}.api_key_file")
    text = os.environ.get(config.api_key_env, "")
    if not text.strip():
        return None
    return checked_key(text, f"the environment variable {config.api_key_env}", "set it to the key, alone")


def describe_key(config: KeyConfig, section: str, source: KeySource = None) -> str:
    """A sentence that says where the key is from, and never the key. source: of `api_key`, for what is wrong with a
    file that was read again.
    """
    if config.api_key_file is not None:
        problem = f"; {source.problem}" if isinstance(source, KeyFile) and source.problem else ""
        return f"The key is read from the file {str(config.api_key_file)!r} ({section}.api_key_file){problem}"
    state = "is set" if os.environ.get(config.api_key_env) else "is not set"
    return f"The key is taken from the environment variable {config.api_key_env} ({section}.api_key_env), which {state}"
