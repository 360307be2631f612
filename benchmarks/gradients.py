"""Memory of two processes under DDP: gradients beside its buckets, or as views of them (Linux).

python benchmarks/gradients.py [--hidden 512]

Each variant trains a random model in two processes on the CPU, several micro-batches a step, as `vold train` does.
Resident bytes are above those of the prepared model and its optimizer, without buckets, in each process.
"""

import argparse
import ctypes
import json
import tempfile
import uuid
from pathlib import Path

import torch
from common import show
from memory import reset_peak, resident_bytes
from torch.distributed.launcher.api import LaunchConfig, elastic_launch
from transformers import Qwen3Config, Qwen3ForCausalLM
from vold_trainer.config import OptimConfig
from vold_trainer.processes.ranks import Ranks, make_accelerator
from vold_trainer.processes.wrapping import PreparedModel
from vold_trainer.student.models import Student

MIB = 1 << 20
M_MMAP_THRESHOLD = -3
STEPS, MICRO_BATCHES, POSITIONS = 3, 3, 16
VARIANTS = {
    "beside the buckets, then None": (False, False),
    "views, then None": (True, False),
    "views, then zero in place (vold)": (True, True),
}


def random_student(hidden: int) -> Student:
    torch.manual_seed(0)
    sizes = {"hidden_size": hidden, "intermediate_size": 3 * hidden, "num_hidden_layers": 6, "vocab_size": 4096}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": hidden // 4}
    model = Qwen3ForCausalLM(Qwen3Config(**sizes, **heads, tie_word_embeddings=True))
    return Student(model, None, None, "random", 4096)


def train(folder: str, hidden: int, views: bool, in_place: bool) -> None:
    """One process's part of a variant; writes what it measured into the folder."""
    torch.set_num_threads(1)
    ctypes.CDLL(None).mallopt(M_MMAP_THRESHOLD, MIB)  # what is freed goes back at once
    ranks = Ranks(make_accelerator())
    ranks.accelerator.ddp_handler.gradient_as_bucket_view = views
    student = random_student(hidden)
    gradient = sum(value.nbytes for value in student.model.parameters())
    before = resident_bytes(peak=False)
    prepared = PreparedModel(student, OptimConfig(), STEPS, 0, ranks)
    if not in_place:
        prepared.gradients._always = []
    ids = torch.arange(POSITIONS) + ranks.rank
    inputs = {"input_ids": ids[None], "attention_mask": torch.ones_like(ids)[None]}
    between = 0
    for _ in range(STEPS):
        reset_peak()
        for number in range(MICRO_BATCHES):
            with prepared.micro_batch(last=number == MICRO_BATCHES - 1):
                scores = prepared.module(inputs, torch.ones(1, POSITIONS, dtype=torch.bool), ids)
                prepared.backward(-scores.logprobs_N.sum())
            if number == 0:
                between = resident_bytes(peak=False)
        prepared.optimizer_step()
    moments = 2 * gradient
    measured = {
        "gradient": gradient,
        "between": between - before - moments,
        "peak": resident_bytes(peak=True) - before - moments,
        "sum": float(sum(value.double().sum() for value in student.model.parameters())),
    }
    Path(folder, f"{ranks.rank}.json").write_text(json.dumps(measured))


def run(hidden: int, views: bool, in_place: bool) -> list[dict[str, float]]:
    with tempfile.TemporaryDirectory() as folder:
        config = LaunchConfig(
            *(1, 1, 2),
            run_id=str(uuid.uuid4()),
            rdzv_backend="c10d",
            rdzv_endpoint="localhost:0",
            start_method="fork",
            max_restarts=0,
        )
        elastic_launch(config, train)(folder, hidden, views, in_place)
        return [json.loads(Path(folder, f"{rank}.json").read_text()) for rank in (0, 1)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--hidden", type=int, default=512, help="hidden size of the model")
    hidden = parser.parse_args().hidden
    rows, first = [], None
    for label, (views, in_place) in VARIANTS.items():
        measured = run(hidden, views, in_place)
        gradient, between, peak = (max(m[name] for m in measured) for name in ("gradient", "between", "peak"))
        first = first or (peak, measured[0]["sum"])
        same = "" if measured[0]["sum"] == first[1] else f", weights differ: {measured[0]['sum'] - first[1]:.2g}"
        rows.append(
            [
                label,
                f"{between / MIB:.0f} MiB",
                f"{between / gradient:.2f}",
                f"{peak / MIB:.0f} MiB",
                f"{peak / gradient:.2f}{same}",
                f"{first[0] / peak:.2f}x",
            ]
        )
    columns = [
        "gradients",
        "between micro-batches",
        "in gradients",
        "peak of a step",
        "in gradients",
        "first row / this",
    ]
    show(f"Gradients and buckets of two processes, gradients of {gradient / MIB:.0f} MiB", columns, rows)


if __name__ == "__main__":
    main()
