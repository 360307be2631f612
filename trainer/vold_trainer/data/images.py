"""Pictures that are decoded when they are looked at.

A data set of photographs, decoded, fills the memory; so a row keeps where its pictures are. Their headers are read with
the row, so that what is no picture is known before the run begins.
"""

import base64
import binascii
import io
import weakref
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, overload

from PIL import Image, ImageOps, UnidentifiedImageError

from vold_trainer.errors import UsageError

Encoded = Path | bytes
"""A picture file, or what would stand in one."""

# What Pillow raises, depending on the format, for a file that is none or breaks off.
_UNREADABLE = (OSError, UnidentifiedImageError, Image.DecompressionBombError, SyntaxError, ValueError, EOFError)


class Picture:
    """One picture of a row. kept: its file or bytes. where: names the row. again: gives the bytes once more, which are
    then not kept. pixels: how many it has.

    Raises UsageError that names row and picture where its header, or with whole=True the rest of it, cannot be read.
    """

    def __init__(
        self, kept: Encoded, where: str, *, again: Callable[[], Encoded] | None = None, whole: bool = False
    ) -> None:
        self.where = where
        self.path = kept if isinstance(kept, Path) else None
        self._read = again or (lambda: kept)
        self._decoded: weakref.ref[Image.Image] | None = None
        try:
            with Image.open(_file(kept)) as image:
                self.pixels = image.width * image.height
                image.verify()
        except _UNREADABLE as error:
            raise self._broken(error) from error
        if whole:
            self._decode(kept)

    def open(self) -> Image.Image:
        """The picture, decoded, as RGB on white. The same object as long as somebody holds it."""
        image = self._decoded() if self._decoded is not None else None
        if image is None:
            image = self._decode(self._read())
            self._decoded = weakref.ref(image)
        return image

    def _decode(self, kept: Encoded) -> Image.Image:
        try:
            with Image.open(_file(kept)) as stored:
                return rgb(stored)
        except _UNREADABLE as error:
            raise self._broken(error) from error

    def _broken(self, error: Exception) -> UsageError:
        name = f" {str(self.path)!r}" if self.path else ""
        return UsageError(f"{self.where}: image{name} cannot be read: {error}")


class Images(Sequence[Image.Image]):
    """The pictures of a row, each decoded when it is asked for."""

    def __init__(self, pictures: Iterable[Picture]) -> None:
        self.pictures = tuple(pictures)

    @property
    def pixels(self) -> int:
        return sum(picture.pixels for picture in self.pictures)

    def __len__(self) -> int:
        return len(self.pictures)

    @overload
    def __getitem__(self, index: int) -> Image.Image: ...
    @overload
    def __getitem__(self, index: slice) -> "Images": ...
    def __getitem__(self, index: int | slice) -> "Image.Image | Images":
        return Images(self.pictures[index]) if isinstance(index, slice) else self.pictures[index].open()

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Sequence) and tuple(self) == tuple(other)

    __hash__ = None  # type: ignore[assignment]


def rgb(image: Image.Image) -> Image.Image:
    """As a student sees it: upright, whatever way the camera was held, and white where it is transparent."""
    image = ImageOps.exif_transpose(image)
    if not image.has_transparency_data:
        return image.convert("RGB")
    image = image.convert("RGBA")
    on_white = Image.new("RGB", image.size, "white")
    on_white.paste(image, mask=image.getchannel("A"))
    return on_white


def encoded(value: Any, folder: Path) -> Encoded:
    """Where the picture of a row's value is: a path (relative to `folder`), a data: address, bytes, or a mapping with
    "bytes" or "path", as data sets have it. Raises ValueError that says what was found, and what would do.
    """
    if isinstance(value, Mapping):
        value = value.get("bytes") or value.get("path")
    if isinstance(value, bytes):
        return value
    if not isinstance(value, str) or not value:
        raise ValueError(f"{_shown(value)}: give the path of a file, a data: address, or bytes")
    if value.startswith("data:"):
        head, _, data = value.partition(",")
        if not head.endswith(";base64"):
            raise ValueError(f"{_shown(value)}: a data: address has to be base64")
        try:
            return base64.b64decode(data, validate=True)
        except binascii.Error as error:
            raise ValueError(f"{_shown(value)}: not base64 ({error})") from error
    if value.startswith(("http://", "https://")):
        raise ValueError(f"{_shown(value)}: nothing is fetched in a run: download it, and give its path")
    return folder / value.removeprefix("file://")


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def _file(kept: Encoded) -> Any:
    return kept if isinstance(kept, Path) else io.BytesIO(kept)
