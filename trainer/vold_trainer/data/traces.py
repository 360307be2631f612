"""Traces: reading and writing rows with target completions."""

import logging
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from vold_trainer.data.columns import FIELD_COLUMNS, Columns
from vold_trainer.data.examples import Example
from vold_trainer.data.files import file_rows
from vold_trainer.data.images import LazyImages
from vold_trainer.data.rows import Reader, Row
from vold_trainer.errors import UsageError

log = logging.getLogger("vold.data")

TRACE_FIELD_COLUMNS = {**FIELD_COLUMNS, "completion": ("completion",), "completion_ids": ("completion_ids",)}


def trace_rows(path: Path, *, skip_broken: bool = False) -> Iterator[tuple[Example, str, Sequence[int] | None]]:
    """(example, completion, the completion's token ids if the row has them) of each row of a JSONL or Parquet file.

    Raises UsageError that names file, row and field; with skip_broken, a broken row is left out with a warning.
    """
    columns = Columns(field_columns=TRACE_FIELD_COLUMNS)
    reader = Reader(columns, references=False)
    for row in file_rows(path, columns):
        try:
            trace = _trace(row, columns, reader)
        except UsageError as error:
            if not skip_broken:
                raise
            log.warning("skipped %s", error)
        else:
            yield trace


def _trace(row: Row, columns: Columns, reader: Reader) -> tuple[Example, str, Sequence[int] | None]:
    if isinstance(row.values, UsageError):
        raise row.values
    fields = columns.fields(row.values)
    completion, ids = fields.get("completion"), fields.get("completion_ids")
    if not isinstance(completion, str) or not completion:
        raise UsageError(f"{row.where}: field 'completion' is {completion!r}: give the text of the completion")
    if ids is not None and not (isinstance(ids, list) and all(isinstance(token, int) for token in ids)):
        raise UsageError(f"{row.where}: field 'completion_ids' is {str(ids)[:60]}: give a list of ids, or drop it")
    return reader.example(row), completion, ids


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
            image.save(path)
    return os.path.relpath(path, folder)
