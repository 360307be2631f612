"""Rows of the `datasets` library: a data set of the hub, or of files in a folder."""

import json
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from vold_proto.distribution import require_extra

from vold_trainer.config import DataConfig
from vold_trainer.data.columns import Columns
from vold_trainer.data.numbers import shortened
from vold_trainer.data.rows import Row
from vold_trainer.errors import UsageError

BATCH = 64


def dataset_rows(config: DataConfig, columns: Columns) -> Iterator[Row]:
    """The rows of a split, with the columns to read. Images stay in the memory-mapped files of `datasets`.

    Raises UsageError if the data set, its configuration, its split or a mapped column does not exist.
    """
    dataset = _open(config)
    where = f"{config.source}:{config.split}"
    features = dataset.features
    # In the stored format, because `datasets` would decode every image of a row.
    stored = dataset.select_columns(columns.columns_to_read(dataset.column_names, where)).with_format("arrow")
    folder = Path(config.source) if Path(config.source).is_dir() else Path()

    def read_values(index: int) -> dict[str, Any]:
        return _convert(features, stored[index : index + 1].to_pylist()[0])

    for start in range(0, len(stored), BATCH):
        for index, row in enumerate(stored[start : start + BATCH].to_pylist(), start):
            yield Row(f"{where}[{index}]", _convert(features, row), folder, partial(read_values, index))


def _open(config: DataConfig) -> Any:
    with require_extra("data", f"data.source {config.source!r}", UsageError):
        import datasets
    try:
        return datasets.load_dataset(
            config.source, config.config or None, split=config.split, revision=config.revision or None
        )
    except Exception as error:  # the builder of a data set may raise anything
        named = f", data.config {config.config!r}" if config.config else ""
        raise UsageError(
            f"data.source {config.source!r}{named}, data.split {config.split!r} cannot be loaded: {error}. Give a file "
            "or a folder that exists, or the name, configuration and split of a data set of the hub"
        ) from error


def _convert(features: Mapping[str, Any], row: Mapping[str, Any]) -> dict[str, Any]:
    return {name: _value(features[name], value) for name, value in row.items()}


def _value(feature: Any, value: Any) -> Any:
    """A stored value as in a JSON row: labels by name, JSON parsed."""
    kind = type(feature).__name__
    if value is None:
        return None
    if isinstance(value, float):
        return shortened(value, str(getattr(feature, "dtype", "")))
    if kind == "ClassLabel":
        return feature.int2str(value) if value >= 0 else None
    if kind == "Json":
        return json.loads(value)
    if kind in ("List", "LargeList", "Sequence"):
        return [_value(feature.feature, item) for item in value]
    if isinstance(feature, list):
        return [_value(feature[0], item) for item in value]
    if isinstance(feature, Mapping):
        return {name: _value(feature[name], item) for name, item in value.items()}
    return value
