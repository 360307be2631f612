"""An expression as a picture: one cell of 28x28 pixels per character, on a grid with blank cells. Place, ink and noise
vary with the seed. A cell is one visual token of the student.
"""

from dataclasses import dataclass
from functools import cache
from random import Random

import numpy as np
from PIL import Image, ImageDraw, ImageFont

CELL = 28
MAX_SHIFT = 2
MAX_BLANKS = 6
WRAP_RATE = 0.3
NOISE = 0.06
"""Standard deviation of the noise, relative to white paper (1) and black ink (0)."""


@dataclass(frozen=True)
class Picture:
    """A drawn expression. cells: the character of each cell in reading order, a blank cell as a space."""

    image: Image.Image
    cells: str
    columns: int


def draw_picture(expression: str, seed: str) -> Picture:
    """Draw the expression, after some blank cells and sometimes over two lines. The same seed gives the same pixels.

    The picture is 8-bit RGB, with 28 * rows by 28 * columns pixels.
    """
    rng = Random(f"picture:{seed}")
    content = " " * rng.randint(0, MAX_BLANKS) + expression
    wraps = rng.random() < WRAP_RATE
    columns = rng.randint((len(content) + 1) // 2, len(content)) if wraps else len(content)
    rows = -(-len(content) // columns)
    cells = content.ljust(rows * columns)

    ink_HW = np.zeros((rows * CELL, columns * CELL), dtype=np.float32)
    for place, character in enumerate(cells):
        if character == " ":
            continue
        top, left = place // columns * CELL, place % columns * CELL
        shift = (rng.randint(-MAX_SHIFT, MAX_SHIFT), rng.randint(-MAX_SHIFT, MAX_SHIFT))
        # The margin of a glyph is wider than the shift, so only blank pixels roll over the edge.
        ink_HW[top : top + CELL, left : left + CELL] = np.roll(_glyph(character), shift, axis=(0, 1))
    noise_HW = np.random.default_rng(rng.getrandbits(64)).normal(0.0, NOISE, ink_HW.shape)
    paper_HW = np.clip(1.0 - ink_HW * rng.uniform(0.75, 1.0) + noise_HW, 0.0, 1.0)
    grey = Image.fromarray((paper_HW * 255).astype(np.uint8), mode="L")
    return Picture(grey.convert("RGB"), cells, columns)


@cache
def _glyph(character: str) -> np.ndarray:
    """Ink of a character centred in a cell, float32 [28, 28] from 0 to 1, in the font that ships with Pillow."""
    canvas = Image.new("L", (CELL, CELL), 0)
    font = ImageFont.load_default(size=22)
    ImageDraw.Draw(canvas).text((CELL / 2, CELL / 2), character, fill=255, font=font, anchor="mm")
    ink_HW = np.asarray(canvas, dtype=np.float32) / 255
    ink_HW.flags.writeable = False
    return ink_HW
