"""The API key that a client sends: a fixed one, or one that is read again when a service refuses it."""

import re
from collections.abc import Callable

from vold_client.errors import InvalidArgument, PermissionDenied, Unauthenticated

KeySource = str | Callable[[], str | None] | None
"""An API key, or a function that returns the key as of now; None and "" for no key."""

KEY_REFUSED = (Unauthenticated, PermissionDenied)


class ApiKey:
    """The key of one client. value: the key to send; None for none."""

    def __init__(self, source: KeySource) -> None:
        self._source = source
        self.value = self._read()

    @property
    def header(self) -> str | None:
        """The value of the `authorization` header."""
        return f"Bearer {self.value}" if self.value else None

    def renew(self, refused: str | None) -> bool:
        """Read the key again after a service has refused the key `refused`. Returns whether there is another to try.

        Calls that were in flight with the same key share one reading.
        """
        if self.value == refused:
            self.value = self._read()
        return self.value != refused

    def _read(self) -> str | None:
        key = self._source() if callable(self._source) else self._source
        if key and not re.fullmatch(r"[\x21-\x7e]+", key):
            # Without the key: a transport's own error about the header would show it.
            raise InvalidArgument(
                "the API key has white space, a line break or a character that is not ASCII in it: give the key alone",
                field="api_key",
            )
        return key or None
