"""Data sets that `datasets` saved to a folder (`save_to_disk`): Arrow's streams, read through pyarrow alone.

A folder holds state.json with the names of its files, and dataset_info.json with the types of its columns; a folder of
several splits holds dataset_dict.json and such a folder for each of them.
"""

from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from vold_trainer.data.arrow import import_pyarrow, require_distinct, row_values, unreadable
from vold_trainer.data.columns import Columns
from vold_trainer.data.parsing import parse_json
from vold_trainer.data.rows import Row
from vold_trainer.errors import UsageError

SPLITS, STATE, INFO = "dataset_dict.json", "state.json", "dataset_info.json"


def is_saved(folder: Path) -> bool:
    """Whether `datasets` saved the folder."""
    return any((folder / name).is_file() for name in (SPLITS, STATE, INFO))


def saved_rows(folder: Path, split: str, columns: Columns) -> Iterator[Row]:
    """The rows of a split, with the columns to read. Images stay in the files, which are mapped into memory.

    Raises UsageError if the folder is not as `datasets` leaves it, a file is broken, or a mapped column is missing.
    """
    arrow = import_pyarrow(f"data.source {str(folder)!r}")
    home = _home(folder, split)
    features = _features(home)
    where, first = f"{folder}:{split}", 0
    for file in _files(home):
        broken = (OSError, arrow.ArrowException, ValueError, OverflowError)
        try:
            stream = arrow.ipc.open_stream(arrow.memory_map(str(file)))
            available = stream.schema.names
        except broken as error:
            raise unreadable(error, str(file), 0) from error
        require_distinct(available, str(file))
        names = columns.columns_to_read(available, where) or available
        begin = first
        while True:
            try:
                batch = stream.read_next_batch().select(names)
                # Its offsets are used as they stand: what points outside of the file must not be followed.
                batch.validate(full=True)
            except StopIteration:
                break
            except broken as error:
                raise unreadable(error, str(file), first - begin) from error
            for place in range(len(batch)):
                row = f"{where}[{first + place}]"
                read = partial(_read, batch, place, row, features)
                yield Row(row, read(), folder, partial(_read_again, read))
            first += len(batch)


def _home(folder: Path, split: str) -> Path:
    """The folder of a split."""
    if not (folder / SPLITS).is_file():
        return folder
    splits = _json(folder / SPLITS).get("splits")
    if not isinstance(splits, list) or split not in splits:
        names = ", ".join(map(str, splits)) if isinstance(splits, list) else "none"
        raise UsageError(f"data.split {split!r}: the data set of {str(folder)!r} has the splits {names}")
    return folder / split


def _files(home: Path) -> list[Path]:
    """The files of a split, as state.json names them."""
    state = _json(home / STATE)
    files = state.get("_data_files")
    names = [file.get("filename") if isinstance(file, dict) else None for file in files or ()]
    if not isinstance(files, list) or not all(isinstance(name, str) and name == Path(name).name for name in names):
        raise UsageError(f"{home / STATE} names no files of its folder in '_data_files': save the data set again")
    if state.get("_indices_data_files") or state.get("_indices_files"):
        raise UsageError(
            f"{home / STATE} has an order of rows of its own: save the data set again, with datasets 2 or newer"
        )
    return [home / str(name) for name in names]


def _features(home: Path) -> Mapping[str, Any]:
    """The types of the columns, as `datasets` writes them; empty if it does not say."""
    features = _json(home / INFO).get("features") if (home / INFO).is_file() else None
    return features if isinstance(features, dict) else {}


def _json(path: Path) -> dict[str, Any]:
    try:
        value = parse_json(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UsageError(f"{path} cannot be read ({str(error)[:120]}): save the data set again") from error
    if not isinstance(value, dict):
        raise UsageError(f"{path} holds no object: save the data set again")
    return value


def _read(batch: Any, place: int, where: str, features: Mapping[str, Any]) -> dict[str, Any] | UsageError:
    row = row_values(batch, place, where)
    if isinstance(row, UsageError):
        return row
    named: dict[str, Any] = {}
    for name, value in row.items():
        try:
            named[name] = _value(features.get(name), value)
        except (ValueError, LookupError, TypeError) as error:
            return UsageError(f"{where}: column {name!r} is not of the type in {INFO} ({str(error)[:60]}): mend it")
    return named


def _read_again(read: Any) -> Mapping[str, Any]:
    values: Mapping[str, Any] | UsageError = read()
    if isinstance(values, UsageError):
        raise values
    return values


def _value(feature: Any, value: Any) -> Any:
    """A stored value as in a row of JSON: labels by name, JSON parsed."""
    if value is None or feature is None:
        return value
    if isinstance(feature, list):
        return [_value(feature[0], item) for item in value]
    kind = feature.get("_type") if isinstance(feature, dict) else None
    if kind == "ClassLabel":
        return feature["names"][value] if value >= 0 else None
    if kind == "Json":
        return parse_json(value)
    if kind in ("List", "LargeList", "Sequence"):
        inner = feature["feature"]
        if isinstance(value, dict):  # a sequence of mappings is stored as a mapping of lists
            return {name: [_value(inner.get(name), item) for item in items or ()] for name, items in value.items()}
        return [_value(inner, item) for item in value]
    if kind is None and isinstance(value, dict):
        return {name: _value(feature.get(name), item) for name, item in value.items()}
    return value
