"""Reading the files of a run that may be unfinished.

The report is also made of runs that have just begun, are still going or were killed, so a missing file is an empty
value, a last line without its newline is not there yet, and any other line that cannot be used is counted in
`problems` and skipped: it must be seen, and it must not cost the rest of the page.
"""

import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

import yaml

_SECRET_KEYS = ("api_key", "apikey", "api_keys", "authorization", "password", "secret", "access_token", "auth_token")

T = TypeVar("T")


def lines(path: Path, parse: Callable[[dict[str, Any]], T], problems: list[str]) -> Iterator[tuple[int, T]]:
    """(byte offset, parsed object) of each usable line; the unusable are summed up in one sentence at the end."""
    if not path.exists():
        return
    bad: list[tuple[int, str]] = []
    with path.open("rb") as file:
        offset = 0
        for number, line in enumerate(file, 1):
            start, offset = offset, offset + len(line)
            if not line.strip():
                continue
            try:
                value = parse(_load(line))
            except (ValueError, TypeError, KeyError) as error:
                if line.endswith(b"\n"):  # else the writer is in the middle of it
                    bad.append((number, f"{type(error).__name__}: {error}"))
                continue
            yield start, value
    if bad:
        number, error_text = bad[0]
        many = "1 line" if len(bad) == 1 else f"{len(bad)} lines"
        problems.append(f"{path.name}: {many} left out, the first at line {number} ({error_text})")


def records(path: Path, parse: Callable[[dict[str, Any]], T], problems: list[str]) -> Iterator[T]:
    """What `parse` makes of each usable line of a JSONL file."""
    for _, value in lines(path, parse, problems):
        yield value


def records_at(
    path: Path, offsets: Sequence[int], parse: Callable[[dict[str, Any]], T], problems: list[str]
) -> Iterator[T]:
    """The lines that start at `offsets`: a long run's rollouts do not fit in memory, the few that are shown do."""
    if not offsets:
        return
    with path.open("rb") as file:
        for offset in offsets:
            file.seek(offset)
            try:
                yield parse(_load(file.readline()))
            except (ValueError, TypeError, KeyError) as error:
                problems.append(f"{path.name}: a rollout at byte {offset} left out ({type(error).__name__}: {error})")


def _load(line: bytes) -> dict[str, Any]:
    value = json.loads(line.decode("utf-8", errors="replace"))
    if not isinstance(value, dict):
        raise TypeError(f"a JSON object is expected, not {type(value).__name__}")
    return value


def json_object(path: Path, problems: list[str]) -> dict[str, Any]:
    """The object in a JSON file, empty where there is none."""
    if not path.exists():
        return {}
    try:
        return _load(path.read_bytes())
    except (ValueError, TypeError) as error:
        problems.append(f"{path.name}: left out ({type(error).__name__}: {error})")
        return {}


def config_text(path: Path, problems: list[str]) -> str | None:
    """A configuration as YAML without its secrets, None where there is none."""
    if not path.exists():
        return None
    try:
        value = yaml.safe_load(path.read_text("utf-8", errors="replace"))
    except yaml.YAMLError as error:
        problems.append(f"{path.name}: left out ({type(error).__name__}: {error})")
        return None
    return yaml.safe_dump(_without_secrets(value), sort_keys=False, allow_unicode=True, width=100)


def _without_secrets(value: Any) -> Any:
    """The same value with API keys and the like replaced: a report is made to be passed on."""
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
