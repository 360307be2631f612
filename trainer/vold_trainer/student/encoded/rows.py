"""An example as bytes, so that a process reads one of a file's examples and not the file.

A line of JSON, then the images that came as bytes. Nothing in them names the file, which may move: a row's place is
what follows the file's name (":12", "[3]"), and paths of images are relative to the file's folder as they are there.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vold_trainer.data import Example
from vold_trainer.data.images import LazyImage, LazyImages


def pack(example: Example, path: Path) -> bytes:
    """The example of a row of the file `path`."""
    images: list[Mapping[str, Any]] = []
    contents: list[bytes] = []
    for image in example.images.lazy_images if isinstance(example.images, LazyImages) else ():
        entry: dict[str, Any] = {"pixels": image.pixels}
        if image.path is None:
            content = image.source
            assert isinstance(content, bytes)
            contents.append(content)
            entry["bytes"] = len(content)
        else:
            entry |= {"path": _portable(image.path, path.parent), "state": file_state(image.path)}
        images.append(entry)
    record = {
        "id": None if example.id == example.where else example.id,
        "place": example.where.removeprefix(str(path)),
        "messages": example.messages,
        "reference": example.reference,
        "category": example.category,
        "meta": dict(example.meta),
        "twin": example.twin,
        "images": images,
    }
    return b"\n".join([json.dumps(record, default=str, separators=(",", ":")).encode(), b"".join(contents)])


def unpack(packed: bytes, path: Path) -> Example:
    """The example of a row of the file `path`. Its images are not looked at before they are opened."""
    line, _, contents = packed.partition(b"\n")
    record = json.loads(line)
    where = f"{path}{record['place']}"
    images, at = [], 0
    for entry in record["images"]:
        if "path" in entry:
            file = path.parent / entry["path"]
            images.append(LazyImage.known(file, where, entry["pixels"]))
        else:
            content, at = contents[at : at + entry["bytes"]], at + entry["bytes"]
            images.append(LazyImage.known(content, where, entry["pixels"]))
    twin = record["twin"]
    return Example(
        id=where if record["id"] is None else record["id"],
        messages=tuple(record["messages"]),
        reference=record["reference"],
        images=LazyImages(images) if images else (),
        category=record["category"],
        meta=record["meta"],
        twin=None if twin is None else tuple(twin),
        where=where,
    )


def image_files_unchanged(packed: bytes, path: Path) -> bool:
    """Whether the image files of a row are as they were when it was packed."""
    entries = json.loads(packed.partition(b"\n")[0])["images"]
    return all(file_state(path.parent / entry["path"]) == entry["state"] for entry in entries if "path" in entry)


def file_state(path: Path) -> list[int] | None:
    """What changes with a file's content: its size, and when it was written. None if there is no such file."""
    try:
        found = path.stat()
    except (OSError, ValueError):  # a name with a null character
        return None
    return [found.st_size, found.st_mtime_ns]


def _portable(path: Path, folder: Path) -> str:
    return str(path.relative_to(folder)) if path.is_relative_to(folder) else str(path)
