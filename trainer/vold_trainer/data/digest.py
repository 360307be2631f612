"""A digest of rows, by which a resumed run knows that it has the rows that it began with."""

import hashlib
import json
from collections.abc import Iterable

from vold_trainer.data.examples import Example


class Digest:
    """A digest that grows row by row."""

    def __init__(self) -> None:
        self._state = hashlib.blake2b(digest_size=12)

    def add(self, record: bytes) -> None:
        """Add a row's record, of `digest_record`."""
        self._state.update(record)

    def value(self) -> str:
        return self._state.hexdigest()


def digest(rows: Iterable[tuple[Example, object]]) -> str:
    """A digest of the rows in their order: ids, texts, references, fields, and the sizes of the images, which are not
    decoded. Each row comes with what else belongs to it, such as a trace's token ids.
    """
    state = Digest()
    for example, more in rows:
        state.add(digest_record(example, more))
    return state.value()


def digest_record(example: Example, more: object) -> bytes:
    """What the digest of a row is made of."""
    fields = [example.id, example.messages, example.reference, example.category, example.meta, example.twin]
    record = [*fields, len(example.images), example.pixels, more]
    return json.dumps(record, default=str, separators=(",", ":"), sort_keys=True).encode() + b"\n"
