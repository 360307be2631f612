"""Images that are decoded on access.

The decoded images of a data set may not fit into memory, so an example holds their sources. Headers are read with the
row, so that an invalid image is found before the run begins.
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

ImageSource = Path | bytes
"""An image file, or its content."""

# The exceptions of Pillow for invalid and truncated files, depending on the format.
_UNREADABLE = (OSError, UnidentifiedImageError, Image.DecompressionBombError, SyntaxError, ValueError, EOFError)


class LazyImage:
    """One image of a row. where: names the row in errors. reload: reads the bytes again, so that they are not stored.
    pixels: number of pixels.

    Raises UsageError that names row and image if the header, or with decode=True the image, cannot be read.
    """

    def __init__(
        self, source: ImageSource, where: str, *, reload: Callable[[], ImageSource] | None = None, decode: bool = False
    ) -> None:
        self.where = where
        self.path = source if isinstance(source, Path) else None
        self._read = reload or (lambda: source)
        self._decoded: weakref.ref[Image.Image] | None = None
        try:
            with Image.open(_file(source)) as image:
                self.pixels = image.width * image.height
                image.verify()
        except _UNREADABLE as error:
            raise self._error(error) from error
        if decode:
            self._decode(source)

    def open(self) -> Image.Image:
        """The decoded image, as RGB on white. The same object as long as a reference to it exists."""
        image = self._decoded() if self._decoded is not None else None
        if image is None:
            image = self._decode(self._read())
            self._decoded = weakref.ref(image)
        return image

    def _decode(self, source: ImageSource) -> Image.Image:
        try:
            with Image.open(_file(source)) as image:
                return to_rgb(image)
        except _UNREADABLE as error:
            raise self._error(error) from error

    def _error(self, error: Exception) -> UsageError:
        name = f" {str(self.path)!r}" if self.path else ""
        return UsageError(f"{self.where}: image{name} cannot be read: {error}")


class LazyImages(Sequence[Image.Image]):
    """The images of a row, decoded on access."""

    def __init__(self, lazy_images: Iterable[LazyImage]) -> None:
        self.lazy_images = tuple(lazy_images)

    @property
    def pixels(self) -> int:
        return sum(image.pixels for image in self.lazy_images)

    def __len__(self) -> int:
        return len(self.lazy_images)

    @overload
    def __getitem__(self, index: int) -> Image.Image: ...
    @overload
    def __getitem__(self, index: slice) -> "LazyImages": ...
    def __getitem__(self, index: int | slice) -> "Image.Image | LazyImages":
        return LazyImages(self.lazy_images[index]) if isinstance(index, slice) else self.lazy_images[index].open()

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Sequence) and tuple(self) == tuple(other)

    __hash__ = None  # type: ignore[assignment]


def to_rgb(image: Image.Image) -> Image.Image:
    """Convert an image to RGB, turned upright by its EXIF orientation, with white for transparent pixels."""
    image = ImageOps.exif_transpose(image)
    if not image.has_transparency_data:
        return image.convert("RGB")
    image = image.convert("RGBA")
    on_white = Image.new("RGB", image.size, "white")
    on_white.paste(image, mask=image.getchannel("A"))
    return on_white


def image_source(value: Any, folder: Path) -> ImageSource:
    """The source of an image in a row: a path (relative to `folder`), a data URL, bytes, or a mapping with "bytes" or
    "path", as in data sets. Raises ValueError with the value and the remedy.
    """
    if isinstance(value, Mapping):
        value = value.get("bytes") or value.get("path")
    if isinstance(value, bytes):
        return value
    if not isinstance(value, str) or not value:
        raise ValueError(f"{_shorten(value)}: give the path of a file, a data: URL, or bytes")
    if value.startswith("data:"):
        head, _, data = value.partition(",")
        if not head.endswith(";base64"):
            raise ValueError(f"{_shorten(value)}: a data: URL has to be base64")
        try:
            return base64.b64decode(data, validate=True)
        except binascii.Error as error:
            raise ValueError(f"{_shorten(value)}: not base64 ({error})") from error
    if value.startswith(("http://", "https://")):
        raise ValueError(f"{_shorten(value)}: nothing is fetched in a run: download it, and give its path")
    return folder / value.removeprefix("file://")


def _shorten(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def _file(source: ImageSource) -> Any:
    return source if isinstance(source, Path) else io.BytesIO(source)
