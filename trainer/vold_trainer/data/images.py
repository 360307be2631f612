"""Images that are decoded on access.

The decoded images of a data set may not fit into memory, so an example holds their sources. Headers are read with the
row, so that an invalid image is found before the run begins.
"""

import base64
import io
import weakref
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, overload
from urllib.parse import unquote

import numpy as np
from PIL import Image, ImageOps

from vold_trainer.data.quoting import MAX_QUOTED, quote
from vold_trainer.errors import UsageError

ImageSource = Path | bytes
"""An image file, or its content."""

MAX_PATH = 255
"""Characters of a path in an error."""

MIN_BASE64 = 64
"""Characters that the base64 of an image has at least."""

_BEGINNINGS = (b"\x89PNG", b"\xff\xd8\xff", b"GIF8", b"RIFF", b"BM", b"II*\0", b"MM\0*")
"""How the files begin whose base64 is read in place of a path."""


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
        except Exception as error:  # whatever the decoder of a format raises
            raise self._error(error) from error
        if decode:
            self._decode(source)

    @classmethod
    def known(cls, source: ImageSource, where: str, pixels: int) -> "LazyImage":
        """An image that was looked at before: nothing is read until it is opened."""
        image = cls.__new__(cls)
        image.where, image.path, image.pixels = where, source if isinstance(source, Path) else None, pixels
        image._read, image._decoded = lambda: source, None
        return image

    @property
    def source(self) -> ImageSource:
        """The file, or its content."""
        return self._read()

    def open(self) -> Image.Image:
        """The decoded image, as RGB on white. The same object as long as a reference to it exists."""
        image = self._decoded() if self._decoded is not None else None
        if image is None:
            image = self._decode(self._read())
            self._decoded = weakref.ref(image)
        return image

    def _decode(self, source: ImageSource) -> Image.Image:
        try:
            return read_rgb(source)
        except ValueError as error:
            raise self._error(error) from error

    def _error(self, error: Exception) -> UsageError:
        name = f" {_shorten_path(self.path)}" if self.path else ""
        return UsageError(f"{self.where}: image{name} cannot be read: {_reason(error)}")


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


def read_rgb(source: ImageSource) -> Image.Image:
    """The decoded image, as `to_rgb`. Raises ValueError if it cannot be decoded."""
    try:
        with Image.open(_file(source)) as image:
            return to_rgb(image)
    except Exception as error:  # whatever the decoder of a format raises
        raise ValueError(_reason(error)) from error


def to_rgb(image: Image.Image) -> Image.Image:
    """Convert an image to RGB, turned upright by its EXIF orientation, with white for transparent pixels. Grey of 16
    bits, and of floating point from 0 to 1, is scaled to 8 bits. Raises ValueError for pixels of another range.
    """
    image = ImageOps.exif_transpose(image)
    if image.mode in ("F", "I") or image.mode.startswith("I;16"):
        image = _to_8_bits(image)
    if not image.has_transparency_data:
        return image.convert("RGB")
    image = image.convert("RGBA")
    on_white = Image.new("RGB", image.size, "white")
    on_white.paste(image, mask=image.getchannel("A"))
    return on_white


def _to_8_bits(image: Image.Image) -> Image.Image:
    """A grey image as LA or L. Pillow cuts its values at 255."""
    values = np.asarray(image).astype(np.float64)
    top = 1.0 if image.mode == "F" else 65535.0
    low, high = float(values.min()), float(values.max())
    if not (low >= 0 and high <= top):  # also where a value is not a number
        raise ValueError(
            f"its pixels are from {low:g} to {high:g}, and only 0 to {top:g} has a meaning: convert it to 8 bits"
        )
    grey = Image.fromarray(np.rint(values * (255 / top)).astype(np.uint8))
    clear = image.info.get("transparency")  # the grey value that is transparent, with all bits
    if isinstance(clear, int):
        grey.putalpha(Image.fromarray(np.where(values == clear, 0, 255).astype(np.uint8)))
    return grey


def image_source(value: Any, folder: Path) -> ImageSource:
    """The source of an image in a row: a path (relative to `folder`), a data URL, bytes, or a mapping with "bytes" or
    "path", as in data sets. Raises ValueError with the value and the remedy.
    """
    if isinstance(value, Mapping):
        value = value.get("bytes") or value.get("path")
    if isinstance(value, bytes):
        return value
    if not isinstance(value, str) or not value:
        raise ValueError(f"{quote(value)}: give the path of a file, a data: URL, or bytes")
    if value.startswith("data:"):
        head, _, data = value.partition(",")
        if not head.endswith(";base64"):
            raise ValueError(f"{quote(value)}: a data: URL has to be base64")
        try:
            return base64.b64decode(data, validate=True)
        except ValueError as error:  # also for a letter that is not ASCII
            raise ValueError(f"{quote(value)}: not base64 ({error})") from error
    if value.startswith(("http://", "https://")):
        raise ValueError(f"{quote(value)}: nothing is fetched in a run: download it, and give its path")
    if value.startswith(("~", "file://~", "file:///~")):
        raise ValueError(f"{quote(value)}: ~ has no meaning in a row: write the whole path")
    if content := _bare_base64(value):
        return content
    return folder / (unquote(value.removeprefix("file://")) if value.startswith("file://") else value)


def _bare_base64(value: str) -> bytes | None:
    """The image whose base64 the text is, without a data: URL around it; None if it may be a path."""
    if len(value) < MIN_BASE64:
        return None
    try:
        content = base64.b64decode("".join(value.split()), validate=True)
    except ValueError:
        return None
    return content if content.startswith(_BEGINNINGS) else None


def _shorten_path(path: Path) -> str:
    """The path, or the end of one that is longer than any file's."""
    text = str(path)
    return repr(text if len(text) <= MAX_PATH else "..." + text[-MAX_QUOTED:])


def _reason(error: Exception) -> str:
    """The error in one line of a few words, without the path or the content that it may repeat."""
    text = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    first = (text or type(error).__name__).splitlines()[0]
    return first if len(first) <= 2 * MAX_QUOTED else first[: 2 * MAX_QUOTED - 3] + "..."


def _file(source: ImageSource) -> Any:
    return source if isinstance(source, Path) else io.BytesIO(source)
