"""Names that rows go by, in whatever is derived from a row alone."""

from collections.abc import Sequence

from vold_trainer.data.examples import Example


def row_keys(examples: Sequence[Example]) -> list[str]:
    """A unique key for each row: its id, or its number if it has none, so that a file may move."""
    return unique_names(
        [f"row {number}" if example.id == example.where else example.id for number, example in enumerate(examples)]
    )


def unique_names(names: Sequence[str]) -> list[str]:
    """The names, with #2, #3, ... where a name is repeated."""
    unique: list[str] = []
    used: set[str] = set()
    counts: dict[str, int] = {}
    for first in names:
        name = first
        while name in used:
            counts[first] = counts.get(first, 1) + 1
            name = f"{first}#{counts[first]}"
        used.add(name)
        unique.append(name)
    return unique
