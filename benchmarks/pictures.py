"""CPU time of a step's image inputs, processed once a step or at each use.

python benchmarks/pictures.py [--prompts 8]

One step of the paper's shape: 5 completions of each prompt, micro-batches of 1, generated in batches of 40 sequences.
Images of 1024 x 768 as PNG, and Qwen2.5-VL's image processor.
"""

import argparse
import io
import statistics
import time

import numpy as np
import torch
from common import show
from PIL import Image
from transformers import Qwen2VLImageProcessorPil
from vold_trainer.config import StudentConfig
from vold_trainer.data import Example
from vold_trainer.data.images import LazyImage, LazyImages
from vold_trainer.student.models import Student, load_student

ROUNDS, GROUP, GENERATED_TOGETHER = 3, 5, 8
WIDTH, HEIGHT = 1024, 768
MIB = 1 << 20


def make_example(seed: int, reads: list[int]) -> Example:
    rng = np.random.default_rng(seed)
    coarse = np.kron(rng.integers(0, 235, (HEIGHT // 16, WIDTH // 16, 3)), np.ones((16, 16, 1)))
    pixels = (coarse + rng.integers(0, 20, coarse.shape)).astype(np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    content = buffer.getvalue()

    def reload() -> bytes:
        reads.append(seed)
        return content

    image = LazyImage(content, f"row {seed}", reload=reload)
    parts = [{"type": "image"}, {"type": "text", "text": "What is it?"}]
    return Example(str(seed), ({"role": "user", "content": parts},), "", LazyImages([image]))


def step(student: Student, examples: list[Example]) -> float:
    """CPU seconds of what a step encodes: to generate, and for each micro-batch."""
    start = time.process_time()
    for first in range(0, len(examples), GENERATED_TOGETHER):
        student.encode(examples[first : first + GENERATED_TOGETHER])
    for example in examples:
        for _ in range(GROUP):
            student.encode([example])
    return time.process_time() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prompts", type=int, default=8, help="prompts of the step")
    count = parser.parse_args().prompts
    torch.set_num_threads(1)
    student = load_student(StudentConfig(path="pocket:student"))
    student.processor.image_processor = Qwen2VLImageProcessorPil()
    reads: list[int] = []
    examples = [make_example(seed, reads) for seed in range(count)]
    times, decoded, stored = [], [0, 0], 0
    with student.pictures.within_steps(0):  # the first batch of a run is processed twice
        student.encode(examples[:2])
    for _ in range(ROUNDS):
        reads.clear()
        each = step(student, examples)
        decoded[0] = len(reads)
        reads.clear()
        with student.pictures.within_steps(0):
            once = step(student, examples)
            stored = student.pictures.stored_input_bytes + student.pictures.stored_image_bytes
        decoded[1] = len(reads)
        times.append((each, once))
    columns = ["image inputs", "CPU s", "images decoded", "stored", "less time"]
    seconds = [statistics.median(column) for column in zip(*times, strict=True)]
    ratios = [each / once for each, once in times]
    ratio = f"{statistics.median(ratios):.1f}x ({min(ratios):.1f} to {max(ratios):.1f})"
    rows = [
        ["at each use", f"{seconds[0]:.2f}", str(decoded[0]), "", ""],
        ["once a step (vold)", f"{seconds[1]:.2f}", str(decoded[1]), f"{stored / MIB:.0f} MiB", ratio],
    ]
    show(f"Image inputs of a step, {count} prompts x {GROUP} completions, medians of {ROUNDS}", columns, rows)


if __name__ == "__main__":
    main()
