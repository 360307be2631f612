"""The name of each row in its traces, and the seed of each sample."""

import hashlib
from array import array
from collections.abc import Iterable, Iterator

import numpy as np

from vold_trainer.data import Example
from vold_trainer.data.digest import digest


class RowNames:
    """Unique names of rows: the row's id, with #2, #3, ... where it is repeated; without an id its position in the data
    and a digest of its content. 8 bytes of memory each.
    """

    def __init__(self, seed: int, offset: int) -> None:
        """seed: the run's. offset: rows of the data before the first."""
        self.seed = seed
        self.offset = offset
        self._hashes = array("Q")
        self._repeats: dict[int, int] = {}

    def counted(self, examples: Iterable[Example]) -> Iterator[Example]:
        """The examples, all of which have to be taken: their names are counted on the way."""
        for index, example in enumerate(examples):
            self._hashes.append(_hash(self._first_name(index, example)))
            yield example
        hashes = np.frombuffer(self._hashes, np.uint64) if self._hashes else np.zeros(0, np.uint64)
        order = np.argsort(hashes, kind="stable")
        same = np.flatnonzero(hashes[order][1:] == hashes[order][:-1]) + 1
        for place in same.tolist():
            before = int(order[place - 1])
            self._repeats[int(order[place])] = self._repeats.get(before, 1) + 1

    def name(self, index: int, example: Example) -> str:
        first = self._first_name(index, example)
        return f"{first}#{self._repeats[index]}" if index in self._repeats else first

    def seed_of(self, name: str, sample: int) -> int:
        """The seed of a sample of the row with this name, 64 bits: a hash, so that rows and runs have seeds of their
        own.
        """
        return _hash(f"{self.seed}:{name}", sample)

    def _first_name(self, index: int, example: Example) -> str:
        if example.id != example.where:
            return example.id
        unnamed = Example("", example.messages, example.reference, example.images, example.category, example.meta)
        return f"row-{self.offset + index}-{digest([(unnamed, example.twin)])[:12]}"


def _hash(text: str, salt: int = 0) -> int:
    digest = hashlib.blake2b(text.encode(), digest_size=8, salt=salt.to_bytes(8, "big"))
    return int.from_bytes(digest.digest(), "big")
