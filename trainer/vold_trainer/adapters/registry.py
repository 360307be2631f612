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
from vold_trainer.adapters.base import Adapter, ReadPicture, Row, Wording, read_picture
from vold_trainer.data import Example
from vold_trainer.errors import UsageError

REGISTRY: dict[str, Adapter] = {
    module.ADAPTER.name: module.ADAPTER
    for module in (mathvista, mathvision, mathverse, mmmu_pro, logicvista, dynamath, wemath, geometry3k)
}


def adapter(name: str) -> Adapter:
    """Raises UsageError that lists the names there are."""
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
    picture: ReadPicture | None = None,
) -> Example:
    """The example of one row of benchmark `name`.

    where: the row's file and number, for messages. folder: what a picture's path is relative to. picture: reads a
    picture in place of the eager reader. Raises UsageError that names the row, the column, the value and the remedy.
    """
    return adapter(name).example(Row(row, where, picture or read_picture(folder)), wording)
