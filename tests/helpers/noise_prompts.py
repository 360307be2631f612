"""Prompts of different lengths for any student, some with noise images of different sizes."""

import numpy as np
from PIL import Image
from vold_trainer.data import Example


def prompt(name, text, size=None):
    """A text prompt; with a noise image of `size` (width, height) before the text if given."""
    if size is None:
        return Example(name, ({"role": "user", "content": text},), "1")
    noise = np.random.default_rng(len(text)).integers(0, 255, (size[1], size[0], 3), dtype=np.uint8)
    parts = [{"type": "image"}, {"type": "text", "text": text}]
    return Example(name, ({"role": "user", "content": parts},), "1", (Image.fromarray(noise),))


TEXT_PROMPTS = [prompt("a", "3"), prompt("b", "what is 3 plus 4?"), prompt("c", "12345 minus 6")]
IMAGE_PROMPTS = [prompt("d", "3", (56, 56)), prompt("e", "12 plus 9", (112, 56)), prompt("f", "what is it?", (56, 112))]
