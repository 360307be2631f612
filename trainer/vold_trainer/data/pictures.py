"""Images as data URLs, small enough for a log."""

import base64
import io

from PIL import Image

MAX_SIDE = 320
MAX_BYTES = 96_000
PREFIX = "data:image/png;base64,"


def encode_thumbnail(image: Image.Image, side: int = MAX_SIDE, max_bytes: int = MAX_BYTES) -> str:
    """A PNG of at most `side` pixels per side and `max_bytes` bytes, as a data URL. A small image is not changed."""
    small = image.convert("RGB")
    while True:
        small.thumbnail((side, side))
        buffer = io.BytesIO()
        # With 64 colours, a photograph takes a third of the bytes.
        (small.quantize(64) if side < MAX_SIDE else small).save(buffer, "PNG", optimize=True)
        if buffer.tell() <= max_bytes or side <= 16:
            return PREFIX + base64.b64encode(buffer.getvalue()).decode()
        side = side * 3 // 4


def decode_data_url(url: str) -> Image.Image:
    """The image of a data URL with a PNG. Raises ValueError for any other URL."""
    if not url.startswith(PREFIX):
        raise ValueError(f"no PNG in a data URL: {url[:40]!r}")
    return Image.open(io.BytesIO(base64.b64decode(url.removeprefix(PREFIX)))).convert("RGB")
