"""Conversion of rows of any source by an adapter."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from vold_trainer.adapters.base import Adapter, Wording
from vold_trainer.adapters.registry import adapt, get_adapter
from vold_trainer.config import DataConfig
from vold_trainer.data.columns import Columns
from vold_trainer.data.examples import Example
from vold_trainer.data.images import LazyImage, image_source
from vold_trainer.data.rows import Row, check_unicode
from vold_trainer.errors import UsageError


@dataclass(frozen=True)
class AdapterReader:
    """Converts rows to examples by an adapter. columns: the adapter's, with the mapping of the config. image_folder,
    decode_images: as in `Reader`.
    """

    adapter: Adapter
    columns: Columns
    wording: Wording
    image_folder: Path | None
    decode_images: bool

    def example(self, row: Row) -> Example:
        """The example of a row. Raises UsageError that names row, column, value and remedy."""
        if isinstance(row.values, UsageError):
            raise row.values
        folder = self.image_folder or row.folder

        def read_image(value: Any, where: str) -> LazyImage:
            try:
                source = image_source(value, folder)
            except ValueError as error:
                raise UsageError(f"{where} is {error}") from error
            return LazyImage(source, where, decode=self.decode_images)

        values = self.columns.fields(row.values)
        example = adapt(self.adapter.name, values, row.where, wording=self.wording, read_image=read_image)
        return check_unicode(replace(example, where=row.where))


def adapter_reader(config: DataConfig) -> AdapterReader:
    """The reader for a config. Raises UsageError for an unknown adapter or mapped field."""
    adapter = get_adapter(config.adapter)
    columns = Columns(config.columns, {name: (name,) for name in adapter.all_columns})
    return AdapterReader(adapter, columns, config.wording, config.image_folder, config.check_images == "pixels")
