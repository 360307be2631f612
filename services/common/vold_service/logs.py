"""Log lines as text or as JSON, each with the id of its request."""

import json
import logging
import sys
import time
from typing import Any

from vold_service import access

FORMATS = ("text", "json")


def setup(level: str, form: str) -> None:
    """Write the log to stderr. form: text or json."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonFormatter() if form == "json" else TextFormatter())
    logging.basicConfig(level=level.upper(), handlers=[handler])


def _fields(record: logging.LogRecord) -> dict[str, Any]:
    """The fields of a line besides its message."""
    fields = dict(getattr(record, "fields", {}))
    request = access.current_record()
    if request is not None and "request_id" not in fields:
        fields["request_id"] = request.request_id
    return fields


def _escape(text: str, keep: str = "") -> str:
    """`text` with every character escaped that a terminal or a viewer does not show as itself: control and format
    characters, such as those that reverse the direction of a line. keep: characters that stay.
    """
    if text.isprintable():
        return text
    return "".join(
        letter if letter.isprintable() or letter in keep else letter.encode("unicode_escape").decode()
        for letter in text
    )


class TextFormatter(logging.Formatter):
    """`time LEVEL logger: message key=value key=value`."""

    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)s %(name)s: %(message)s")

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802
        fields = "".join(f" {key}={_quote_if_ambiguous(value)}" for key, value in _fields(record).items())
        return _escape(super().formatMessage(record)) + fields

    def formatException(self, ei: Any) -> str:  # noqa: N802
        return _escape(super().formatException(ei), keep="\n")


class JsonFormatter(logging.Formatter):
    """One JSON object a line: time (UTC), level, logger, message, the fields, and the exception if any."""

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, Any] = {
            "time": f"{time.strftime('%Y-%m-%dT%H:%M:%S', time.gmtime(record.created))}.{int(record.msecs):03d}Z",
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            **_fields(record),
        }
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        text = json.dumps(line, ensure_ascii=False, default=str)
        return text if text.isprintable() else "".join(map(_escape_in_json, text))


def _escape_in_json(letter: str) -> str:
    return letter if letter.isprintable() else json.dumps(letter)[1:-1]


def _quote_if_ambiguous(value: Any) -> str:
    """The value as text, quoted if it could read as more than one field: a caller chooses its own request id."""
    text = str(value)
    return text if text.isprintable() and not any(mark in text for mark in ' "=') else json.dumps(text)
