"""A digest of rows, by which a resumed run knows that it has the rows that it began with."""

import hashlib
import json
from collections.abc import Iterable

from vold_trainer.data.examples import Example


def digest(rows: Iterable[tuple[Example, object]]) -> str:
    """A digest of the rows in their order: ids, texts, references, fields, and the sizes of the images, which are not
    decoded. Each row comes with what else belongs to it, such as a trace's token ids.
    """
    state = hashlib.blake2b(digest_size=12)
    for example, more in rows:
        fields = [example.id, example.messages, example.reference, example.category, example.meta, example.twin]
        record = [*fields, len(example.images), example.pixels, more]
        state.update(json.dumps(record, default=str, separators=(",", ":"), sort_keys=True).encode())
        state.update(b"\n")
    return state.hexdigest()
