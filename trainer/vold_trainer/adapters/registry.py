"""Adapters by name."""

import difflib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vold_trainer.adapters import (
    dynamath,
    geometry3k,
    logicvista,
    mathverse,
    mathvision,
    mathvista,
    mmmu_pro,
    wemath,
)
from vold_trainer.adapters.base import Adapter, BenchmarkRow, ReadImage, Wording, image_reader
from vold_trainer.data import Example
from vold_trainer.errors import UsageError

REGISTRY: dict[str, Adapter] = {
    module.ADAPTER.name: module.ADAPTER
    for module in (mathvista, mathvision, mathverse, mmmu_pro, logicvista, dynamath, wemath, geometry3k)
}


def get_adapter(name: str) -> Adapter:
    """The adapter of a name. Raises UsageError that lists the known names."""
    if name not in REGISTRY:
        near = difflib.get_close_matches(name.lower().replace("-", "_"), REGISTRY, n=1)
        hint = f"did you mean {near[0]!r}? " if near else ""
        raise UsageError(f"data.adapter {name!r} is no adapter; {hint}known: {', '.join(REGISTRY)}")
    return REGISTRY[name]


def adapt(
    name: str,
    row: Mapping[str, Any],
    where: str,
    *,
    wording: Wording = "boxed",
    folder: Path = Path(),
    read_image: ReadImage | None = None,
) -> Example:
    """The example of one row of benchmark `name`.

    where: the row's file and number, for errors. folder: base of relative image paths. read_image: reads an image;
    None: images are decoded at once. Raises UsageError that names the row, the column, the value and the remedy.
    """
    return get_adapter(name).make_example(BenchmarkRow(row, where, read_image or image_reader(folder)), wording)
