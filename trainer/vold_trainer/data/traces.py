"""Traces: rows that bring the completion that is to be learned, and the writing of such rows."""

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from vold_trainer.data.columns import NAMES, Columns
from vold_trainer.data.examples import Example
from vold_trainer.data.files import file_rows
from vold_trainer.data.images import Images
from vold_trainer.data.rows import Reader
from vold_trainer.errors import UsageError

TRACE_NAMES = {**NAMES, "completion": ("completion",), "completion_ids": ("completion_ids",)}


def trace_rows(path: Path) -> Iterator[tuple[Example, str, Sequence[int] | None]]:
    """(prompt, completion, the completion's ids where the row has them) of a JSONL or Parquet file.

    Raises UsageError that names file, row and field.
    """
    columns = Columns(names=TRACE_NAMES)
    reader = Reader(columns, references=False)
    for row in file_rows(path, columns):
        if isinstance(row.values, UsageError):
            raise row.values
        fields = columns.fields(row.values)
        completion, ids = fields.get("completion"), fields.get("completion_ids")
        if not isinstance(completion, str) or not completion:
            raise UsageError(f"{row.where}: field 'completion' is {completion!r}: give the text to learn")
        if ids is not None and not (isinstance(ids, list) and all(isinstance(token, int) for token in ids)):
            raise UsageError(f"{row.where}: field 'completion_ids' is {str(ids)[:60]}: give a list of ids, or drop it")
        yield reader.example(row), completion, ids


def prompt_fields(example: Example, folder: Path, images: Path) -> dict[str, Any]:
    """The fields that make a row of an example's prompt, for a file in `folder`.

    Images that are files are named by their path; others are saved into the folder `images`.
    """
    fields: dict[str, Any] = {"messages": list(example.messages)}
    if example.images:
        fields["images"] = [_named(example, index, folder, images) for index in range(len(example.images))]
    if example.twin is not None:
        fields["twin_messages"] = list(example.twin)
    return fields


def _named(example: Example, index: int, folder: Path, images: Path) -> str:
    path = example.images.pictures[index].path if isinstance(example.images, Images) else None
    if path is None:
        safe = "".join(letter if letter.isalnum() or letter in "-_." else "_" for letter in example.id)
        path = images / f"{safe}-{index}.png"
        if not path.exists():
            images.mkdir(parents=True, exist_ok=True)
            image: Image.Image = example.images[index]
            image.save(path)
    return os.path.relpath(path, folder)
