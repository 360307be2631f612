"""Peak memory of scoring 4,000 tokens at a vocabulary of 152k, above the memory of the loaded model (Linux).

python benchmarks/memory.py
"""

from pathlib import Path

import models
import numpy as np
import torch
from common import show
from vold_teacher.types import ScoreOptions, Sequence

GIB = 1 << 30
TOKENS = 4000


def resident_bytes(peak: bool) -> int:
    """Resident bytes now, or the peak since `reset_peak`."""
    name = "VmHWM" if peak else "VmRSS"
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) << 10 for line in lines if line.startswith(name))


def reset_peak() -> None:
    Path("/proc/self/clear_refs").write_text("5")


def main() -> None:
    torch.set_num_threads(1)
    vocabulary = models.SIZES["wide"].vocab
    backend = models.torch_backend("wide")
    rng = np.random.default_rng(0)
    rows = []
    for label, options in (
        ("sampled token", ScoreOptions()),
        ("top-20", ScoreOptions(top_k=20)),
        ("top-20 and entropy", ScoreOptions(top_k=20, entropy=True)),
    ):
        prompt, completion = (rng.integers(0, vocabulary, n).astype(np.int32) for n in (8, TOKENS))
        before = resident_bytes(peak=False)
        reset_peak()
        backend.score([Sequence(prompt, completion, options)])
        rows.append([label, f"{(resident_bytes(peak=True) - before) / GIB:.2f} GiB"])
    whole = TOKENS * vocabulary * 4 / GIB
    rows.append(["for comparison: one float32 tensor [tokens, vocabulary]", f"{whole:.2f} GiB"])
    show(f"Peak memory above the model, {TOKENS} tokens at a vocabulary of {vocabulary}", ["asked for", "peak"], rows)


if __name__ == "__main__":
    main()
