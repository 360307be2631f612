"""Rows of whatever a set is read from, as an adapter's examples."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vold_trainer.adapters.base import Adapter, Wording
from vold_trainer.adapters.registry import adapt, adapter
from vold_trainer.config import DataConfig
from vold_trainer.data.columns import Columns
from vold_trainer.data.examples import Example
from vold_trainer.data.images import Picture, encoded
from vold_trainer.data.rows import Row
from vold_trainer.errors import UsageError


@dataclass(frozen=True)
class AdapterReader:
    """columns: the adapter's, with what a config maps. image_folder: None for the row's. whole_images: as `Reader`."""

    benchmark: Adapter
    columns: Columns
    wording: Wording
    image_folder: Path | None
    whole_images: bool

    def example(self, row: Row) -> Example:
        """Raises UsageError that names row, column, value and remedy."""
        if isinstance(row.values, UsageError):
            raise row.values
        folder = self.image_folder or row.folder

        def picture(value: Any, where: str) -> Picture:
            try:
                kept = encoded(value, folder)
            except ValueError as error:
                raise UsageError(f"{where} is {error}") from error
            return Picture(kept, where, whole=self.whole_images)

        values = self.columns.fields(row.values)
        return adapt(self.benchmark.name, values, row.where, wording=self.wording, picture=picture)


def adapter_reader(config: DataConfig) -> AdapterReader:
    """Raises UsageError for an adapter, or a mapped column, that there is not."""
    benchmark = adapter(config.adapter)
    columns = Columns(config.columns, {name: (name,) for name in benchmark.reads})
    return AdapterReader(benchmark, columns, config.wording, config.image_folder, config.check_images == "pixels")
