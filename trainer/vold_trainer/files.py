"""JSON and JSON Lines files: written atomically, read without incomplete lines."""

import contextlib
import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict, is_dataclass
from pathlib import Path
from typing import Any


def replace_non_finite(value: Any) -> Any:
    """Replace NaN and infinities, which JSON cannot hold, by None, in nested values too."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {key: replace_non_finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [replace_non_finite(item) for item in value]
    return value


def write_json(path: Path, value: Any) -> None:
    """Write a JSON file atomically."""
    if is_dataclass(value) and not isinstance(value, type):
        value = asdict(value)
    write_text(path, json.dumps(replace_non_finite(value), indent=2) + "\n")


def write_lines(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Write a JSONL file atomically."""
    write_text(path, "".join(json.dumps(replace_non_finite(row)) + "\n" for row in rows))


def write_text(path: Path, text: str) -> None:
    """Write a file atomically: killed, or on a full disk, it is as it was."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    try:
        partial.write_text(text)
        partial.replace(path)
    except OSError:
        partial.unlink(missing_ok=True)
        raise


def read_json_lines(path: Path) -> list[dict[str, Any]]:
    """The complete lines of a JSONL file that may still be written; an empty list if there is no file."""
    rows = []
    for line in path.read_text(errors="replace").splitlines() if path.is_file() else ():
        with contextlib.suppress(json.JSONDecodeError):
            rows.append(json.loads(line))
    return [row for row in rows if isinstance(row, dict)]
