"""Pictures as data: addresses, small enough to stand in a log."""

import base64
import io

from PIL import Image

MOST_PIXELS = 320
MOST_BYTES = 96_000
PREFIX = "data:image/png;base64,"


def thumbnail(image: Image.Image, side: int = MOST_PIXELS, most: int = MOST_BYTES) -> str:
    """A PNG of at most `side` pixels a side and `most` bytes. What is small already stays as it is, pixel by pixel."""
    small = image.convert("RGB")
    while True:
        small.thumbnail((side, side))
        buffer = io.BytesIO()
        # a photograph in 64 colours is a third of its size
        (small.quantize(64) if side < MOST_PIXELS else small).save(buffer, "PNG", optimize=True)
        if buffer.tell() <= most or side <= 16:
            return PREFIX + base64.b64encode(buffer.getvalue()).decode()
        side = side * 3 // 4


def decode(uri: str) -> Image.Image:
    """The picture of such an address. Raises ValueError for another kind of address."""
    if not uri.startswith(PREFIX):
        raise ValueError(f"no PNG in a data: address: {uri[:40]!r}")
    return Image.open(io.BytesIO(base64.b64decode(uri.removeprefix(PREFIX)))).convert("RGB")
