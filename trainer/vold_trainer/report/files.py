"""Reading the files of a run that may be unfinished.

A report can be made of a run that has just started, is still running or was killed. A missing file is an empty value, a
last line without newline is ignored, and any other unreadable line is skipped and reported in `read_errors`, so that it
is visible and does not prevent the report.
"""

import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

import yaml

_SECRET_KEYS = ("api_key", "apikey", "api_keys", "authorization", "password", "secret", "access_token", "auth_token")

T = TypeVar("T")


def read_lines(path: Path, parse: Callable[[dict[str, Any]], T], read_errors: list[str]) -> Iterator[tuple[int, T]]:
    """(byte offset, parsed object) of each readable line. One sentence in `read_errors` counts the other lines."""
    if not path.exists():
        return
    errors: list[tuple[int, str]] = []
    with path.open("rb") as file:
        offset = 0
        for number, line in enumerate(file, 1):
            start, offset = offset, offset + len(line)
            if not line.strip():
                continue
            try:
                value = parse(_load(line))
            except (ValueError, TypeError, KeyError) as error:
                if line.endswith(b"\n"):  # else the writer has not finished the line
                    errors.append((number, f"{type(error).__name__}: {error}"))
                continue
            yield start, value
    if errors:
        number, error_text = errors[0]
        count = "1 line" if len(errors) == 1 else f"{len(errors)} lines"
        read_errors.append(f"{path.name}: {count} left out, the first at line {number} ({error_text})")


def read_records(path: Path, parse: Callable[[dict[str, Any]], T], read_errors: list[str]) -> Iterator[T]:
    """The parsed object of each readable line of a JSONL file."""
    for _, value in read_lines(path, parse, read_errors):
        yield value


def read_records_at(
    path: Path, offsets: Sequence[int], parse: Callable[[dict[str, Any]], T], read_errors: list[str]
) -> Iterator[T]:
    """The parsed lines that start at `offsets`. All rollouts of a long run would not fit in memory."""
    if not offsets:
        return
    with path.open("rb") as file:
        for offset in offsets:
            file.seek(offset)
            try:
                yield parse(_load(file.readline()))
            except (ValueError, TypeError, KeyError) as error:
                read_errors.append(
                    f"{path.name}: a rollout at byte {offset} left out ({type(error).__name__}: {error})"
                )


def _load(line: bytes) -> dict[str, Any]:
    value = json.loads(line.decode("utf-8", errors="replace"))
    if not isinstance(value, dict):
        raise TypeError(f"a JSON object is expected, not {type(value).__name__}")
    return value


def json_object(path: Path, read_errors: list[str]) -> dict[str, Any]:
    """The object in a JSON file, empty if there is no file."""
    if not path.exists():
        return {}
    try:
        return _load(path.read_bytes())
    except (ValueError, TypeError) as error:
        read_errors.append(f"{path.name}: left out ({type(error).__name__}: {error})")
        return {}


def config_text(path: Path, read_errors: list[str]) -> str | None:
    """A configuration as YAML without its secrets, None if there is no file."""
    if not path.exists():
        return None
    try:
        value = yaml.safe_load(path.read_text("utf-8", errors="replace"))
    except yaml.YAMLError as error:
        read_errors.append(f"{path.name}: left out ({type(error).__name__}: {error})")
        return None
    return yaml.safe_dump(_without_secrets(value), sort_keys=False, allow_unicode=True, width=100)


def _without_secrets(value: Any) -> Any:
    """The value with API keys, passwords and the like replaced, because reports are shared."""
    if isinstance(value, dict):
        return {
            key: "(removed)" if item and str(key).lower() in _SECRET_KEYS else _without_secrets(item)
            for key, item in value.items()
        }
    if isinstance(value, list):
        return [_without_secrets(item) for item in value]
    if isinstance(value, str) and "://" in value and "@" in value:
        scheme, _, rest = value.partition("://")
        credentials, at, host = rest.rpartition("@")
        return f"{scheme}://(removed)@{host}" if at and "/" not in credentials else value
    return value
