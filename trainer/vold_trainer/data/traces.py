"""Traces: reading and writing rows with target completions."""

import logging
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from PIL import Image

from vold_trainer.data.columns import FIELD_COLUMNS, ColumnMapping, Columns
from vold_trainer.data.examples import Example
from vold_trainer.data.files import file_rows
from vold_trainer.data.images import LazyImages
from vold_trainer.data.rows import Reader, Row
from vold_trainer.errors import UsageError

log = logging.getLogger("vold.data")

T = TypeVar("T")

TRACE_FIELD_COLUMNS = {**FIELD_COLUMNS, "completion": ("completion",), "completion_ids": ("completion_ids",)}


@dataclass(frozen=True)
class TraceRules:
    """How rows are read. columns, limit: as of `vold train`. prefix: of these keys in the config, for errors."""

    columns: ColumnMapping | None = None
    limit: int | None = None
    prefix: str = "data."


OF_TRAIN = TraceRules()
"""As `vold train` has the keys."""


class TraceRow(NamedTuple):
    """ids: of the completion's tokens, if the row has them."""

    example: Example
    completion: str
    ids: Sequence[int] | None


def read_trace_rows(
    path: Path, read: Callable[[TraceRow], T], rules: TraceRules, *, skip_broken: bool = False
) -> list[T]:
    """What `read` makes of each row of a JSONL or Parquet file.

    Raises UsageError, also of `read`, that names file, row and field; with skip_broken, a broken row is left out with a
    warning.
    """
    columns = Columns(rules.columns, TRACE_FIELD_COLUMNS, key=f"{rules.prefix}columns")
    reader = Reader(columns, references=False)
    made: list[T] = []
    seen: dict[str, None] = {}
    for row in file_rows(path, columns):
        try:
            made.append(read(_trace(row, columns, reader)))
        except UsageError as error:
            if not skip_broken:
                raise UsageError(f"{error}. Mend the row, or set {rules.prefix}skip_broken=true") from error
            log.warning("skipped %s", error)
        if not isinstance(row.values, UsageError):
            seen |= dict.fromkeys(row.values)
        if len(made) == rules.limit:
            return made
    if seen:
        columns.check_seen(list(seen), repr(str(path)))
    return made


def _trace(row: Row, columns: Columns, reader: Reader) -> TraceRow:
    if isinstance(row.values, UsageError):
        raise row.values
    fields = columns.fields(row.values)
    completion, ids = fields.get("completion"), fields.get("completion_ids")
    if not isinstance(completion, str) or not completion:
        name = columns.describe("completion")
        raise UsageError(f"{row.where}: {name} is {str(completion)[:60]!r}: give the text of the completion")
    if ids is not None and not (isinstance(ids, list) and all(isinstance(token, int) for token in ids)):
        name = columns.describe("completion_ids")
        raise UsageError(f"{row.where}: {name} is {str(ids)[:60]}: give a list of ids, or drop it")
    return TraceRow(reader.example(row), completion, ids)


def prompt_fields(example: Example, folder: Path, images: Path) -> dict[str, Any]:
    """The fields of a row with the prompt of an example, for a file in `folder`.

    Images of files are given by path; others are saved to the folder `images`.
    """
    fields: dict[str, Any] = {"messages": list(example.messages)}
    if example.images:
        fields["images"] = [_image_path(example, index, folder, images) for index in range(len(example.images))]
    if example.twin is not None:
        fields["twin_messages"] = list(example.twin)
    return fields


def _image_path(example: Example, index: int, folder: Path, images: Path) -> str:
    path = example.images.lazy_images[index].path if isinstance(example.images, LazyImages) else None
    if path is None:
        safe = "".join(letter if letter.isalnum() or letter in "-_." else "_" for letter in example.id)
        path = images / f"{safe}-{index}.png"
        if not path.exists():
            images.mkdir(parents=True, exist_ok=True)
            image: Image.Image = example.images[index]
            partial = path.with_name(f"{path.name}.partial")  # killed, the command leaves no half of an image
            image.save(partial, "PNG")
            partial.replace(path)
    return os.path.relpath(path, folder)
