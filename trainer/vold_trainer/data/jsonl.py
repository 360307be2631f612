"""Rows of JSONL: one JSON object per line."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from vold_trainer.errors import UsageError


def read_jsonl(path: Path) -> Iterator[tuple[int, dict[str, Any] | UsageError]]:
    """(line number from 1, object or error) of each line of a JSONL file; empty lines are skipped."""
    with path.open(encoding="utf-8", errors="replace") as lines:
        for number, line in enumerate(lines, 1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except json.JSONDecodeError as error:
                yield number, UsageError(f"{path}:{number}: not JSON ({error}): {line.strip()[:60]!r}")
                continue
            if isinstance(row, dict):
                yield number, row
            else:
                yield (
                    number,
                    UsageError(f"{path}:{number}: a {type(row).__name__}, not an object: {line.strip()[:60]!r}"),
                )
