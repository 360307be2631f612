"""JSON and JSON Lines files: written whole, read as far as they are whole."""

import contextlib
import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict, is_dataclass
from pathlib import Path
from typing import Any


def finite(value: Any) -> Any:
    """NaN and infinities as None, all the way down: JSON has no word for them."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {key: finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [finite(item) for item in value]
    return value


def write_json(path: Path, value: Any) -> None:
    """Write a file whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    if is_dataclass(value) and not isinstance(value, type):
        value = asdict(value)
    partial.write_text(json.dumps(finite(value), indent=2) + "\n")
    partial.replace(path)


def write_lines(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Write a JSONL file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(finite(row)) + "\n" for row in rows))


def read_json_lines(path: Path) -> list[dict[str, Any]]:
    """The whole lines of a JSONL file that may still be written; none where there is no file."""
    rows = []
    for line in path.read_text().splitlines() if path.is_file() else ():
        with contextlib.suppress(json.JSONDecodeError):
            rows.append(json.loads(line))
    return rows
