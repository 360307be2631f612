"""Reading a published data set row by row and writing vold's file, which is complete or as it was before."""

import hashlib
import io
import json
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

from PIL import Image
from rich.table import Table

from vold_trainer.data.columns import Columns
from vold_trainer.data.files import file_rows
from vold_trainer.data.images import LazyImage
from vold_trainer.data.parquet import count_parquet_rows
from vold_trainer.data.rows import IMAGE_TOKEN, Reader, Row
from vold_trainer.errors import UsageError
from vold_trainer.lock import holding
from vold_trainer.paths import require_file, require_writable
from vold_trainer.preparation.layouts import Dropped, Layout, LayoutColumns, LayoutError, Options
from vold_trainer.runs.start import refuse_existing
from vold_trainer.terminal import progress

REFRESH = 256
"""Rows between two looks at the progress bar."""

SUFFIXES = {"PNG": ".png", "JPEG": ".jpg", "WEBP": ".webp", "GIF": ".gif", "BMP": ".bmp", "TIFF": ".tiff"}


@dataclass
class Prepared:
    """What was read and written. dropped: rows by what they lack. images: pictures written beside the file."""

    out: Path
    rows: int = 0
    kept: int = 0
    images: int = 0
    dropped: Counter[str] = field(default_factory=Counter)

    def table(self) -> Table:
        table = Table("rows", "number")
        table.add_row("read", f"{self.rows:,}")
        table.add_row("kept", f"{self.kept:,}")
        for why, count in sorted(self.dropped.items()):
            table.add_row(f"dropped: {why}", f"{count:,}")
        if self.images:
            table.add_row("pictures beside them", f"{self.images:,}")
        return table


def run_prepare(
    layout: Layout,
    files: Sequence[Path],
    out: Path,
    *,
    overwrite: bool = False,
    skip_broken: bool = False,
    completions: bool = False,
) -> Prepared:
    """Write the rows of the files, in their order, as JSONL. Pictures go into the folder NAME-images beside it, by a
    hash of their content.

    skip_broken: drop rows that are broken, and count them; a file of another layout is an error nevertheless.
    completions: keep the completions of the data set. Raises UsageError that names file, row and value; `out` is then
    as it was.
    """
    for file in files:
        require_file(file, "FILE", "download it from where it is published: `vold prepare` fetches nothing")
    if out.suffix != ".jsonl":
        raise UsageError(f"--out {str(out)!r}: the file is JSONL: name it {out.with_suffix('.jsonl').name}")
    if any(out.exists() and out.samefile(file) for file in files):
        raise UsageError(f"--out {str(out)!r} is one of the files to read: name another file")
    refuse_existing(out, overwrite)
    require_writable(out.parent, "--out", out)
    columns = LayoutColumns(layout)
    with holding(out, "traces"):
        partial = out.with_name(out.name + ".partial")
        prepared = Prepared(out)
        pictures = _Pictures(out)
        options = Options(completions=completions, save_image=pictures.save)
        total = sum(_count(file, columns) for file in files)
        try:
            with partial.open("w", encoding="utf-8") as stream, progress(f"preparing {layout.name}", total) as live:
                for row in _rows(files, columns):
                    _write(layout, row, prepared, options, stream, skip_broken=skip_broken)
                    if prepared.rows % REFRESH == 0 or prepared.rows == total:
                        live.update(prepared.rows, kept=f"{prepared.kept:,}")
            if not prepared.kept:
                why = ", ".join(f"{count:,} {reason}" for reason, count in sorted(prepared.dropped.items()))
                raise UsageError(f"{', '.join(map(str, files))}: no row is left ({why or 'there are none'})")
            partial.replace(out)
        except OSError as error:
            raise UsageError(f"--out {str(out)!r} cannot be written: {error}; it is as it was") from error
        finally:
            partial.unlink(missing_ok=True)
    prepared.images = pictures.count
    return prepared


def _rows(files: Sequence[Path], columns: Columns) -> Iterator[Row]:
    for file in files:
        yield from file_rows(file, columns)


def _count(file: Path, columns: Columns) -> int:
    """The number of rows of a file. Parquet says it; anything else is read once."""
    if file.suffix == ".parquet":
        return count_parquet_rows(file)
    return sum(1 for _ in file_rows(file, columns))


def _write(
    layout: Layout, row: Row, prepared: Prepared, options: Options, stream: IO[str], *, skip_broken: bool
) -> None:
    number, prepared.rows = prepared.rows, prepared.rows + 1
    try:
        made = layout.row(row, number, options)
        # What is written is read as the commands will read it: a row that they refuse is told here.
        _READER.example(Row(row.where, made, prepared.out.parent))
    except Dropped as why:
        prepared.dropped[str(why)] += 1
        return
    except LayoutError:
        raise
    except UsageError as error:
        if not skip_broken:
            raise UsageError(f"{error}. Mend the row, or leave such rows out with --skip-broken") from error
        prepared.dropped["broken"] += 1
        return
    stream.write(json.dumps(made, ensure_ascii=False) + "\n")
    prepared.kept += 1


_READER = Reader(Columns(), image_token=IMAGE_TOKEN)


class _Pictures:
    """Writes pictures into the folder beside a file."""

    def __init__(self, out: Path) -> None:
        self.out = out
        self.folder = out.with_name(f"{out.stem}-images")
        self.written: set[str] = set()

    @property
    def count(self) -> int:
        return len(self.written)

    def save(self, content: bytes) -> str:
        """The path of the picture, relative to the file. Raises ValueError if it is none that can be read."""
        name = hashlib.blake2b(content, digest_size=12).hexdigest() + _suffix(content)
        if name not in self.written:
            self.folder.mkdir(parents=True, exist_ok=True)
            partial = self.folder / f"{name}.partial"
            partial.write_bytes(content)
            partial.replace(self.folder / name)
            self.written.add(name)
        return f"{self.folder.name}/{name}"


def _suffix(content: bytes) -> str:
    """The suffix of the picture's format. Raises ValueError if its header or, of PNG, its checksums are broken."""
    try:
        LazyImage(content, "an image")
    except UsageError as error:
        raise ValueError(str(error)) from error
    with Image.open(io.BytesIO(content)) as image:
        return SUFFIXES.get(image.format or "", "")
