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
from vold_trainer.data.fields import FieldError, completion_text
from vold_trainer.data.files import file_rows
from vold_trainer.data.images import LazyImages
from vold_trainer.data.rows import IMAGE_TOKEN, Reader, Row
from vold_trainer.data.sharegpt import chat_of
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


class TraceReader:
    """Reads rows of a file of traces. seen: the columns that they have had."""

    def __init__(self, rules: TraceRules) -> None:
        """Raises UsageError for a field that traces have not."""
        self.rules = rules
        self.columns = Columns(rules.columns, TRACE_FIELD_COLUMNS, key=f"{rules.prefix}columns")
        self.seen: dict[str, None] = {}
        self._reader = Reader(self.columns, image_token=IMAGE_TOKEN, references=False)

    def read(self, row: Row) -> TraceRow:
        """The trace of a row. Raises UsageError that names file, row and field."""
        if isinstance(row.values, UsageError):
            raise row.values
        self.seen |= dict.fromkeys(row.values)
        fields = self.columns.fields(row.values)
        chat, ids = chat_of(fields), fields.get("completion_ids")
        try:
            completion = completion_text(fields.get("completion", chat.answer if chat else None))
            if not completion:
                raise FieldError.of("completion", completion, "give the text of the completion")
            if ids is not None and not (isinstance(ids, list) and all(type(token) is int for token in ids)):
                raise FieldError.of("completion_ids", ids, "give a list of ids, or drop it")
        except FieldError as error:
            hint = "" if error.field in fields else self.columns.hint(error.field, tuple(row.values))
            raise UsageError(f"{row.where}: {self.columns.describe(error.field)} {error.problem}{hint}") from error
        return TraceRow(self._reader.example(row), completion, ids)

    def check_seen(self, path: Path) -> None:
        """Raise UsageError for a mapped column that no row of the file had, once all are read."""
        if self.seen:
            self.columns.check_seen(list(self.seen), repr(str(path)))

    def of_broken_row(self, said: str) -> UsageError:
        """The error that stops the command at a broken row. said: of the row."""
        return UsageError(f"{said}. Mend the row, or set {self.rules.prefix}skip_broken=true")


def warn_skipped(said: str) -> None:
    """Log a broken row that is left out."""
    log.warning("skipped %s", said)


def read_trace_rows(
    path: Path, read: Callable[[TraceRow], T], rules: TraceRules, *, skip_broken: bool = False
) -> list[T]:
    """What `read` makes of each row of a JSONL or Parquet file.

    Raises UsageError, also of `read`, that names file, row and field; with skip_broken, a broken row is left out with a
    warning.
    """
    reader = TraceReader(rules)
    made: list[T] = []
    for row in file_rows(path, reader.columns):
        try:
            made.append(read(reader.read(row)))
        except UsageError as error:
            if not skip_broken:
                raise reader.of_broken_row(str(error)) from error
            warn_skipped(str(error))
        if len(made) == rules.limit:
            return made
    reader.check_seen(path)
    return made


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
