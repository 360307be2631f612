"""How many of the pocket student's weights a step changes in bfloat16, and in float32 with bfloat16 products.

python benchmarks/rounding.py
"""

import copy

import torch
from common import show
from vold_trainer.config import OptimConfig, StudentConfig
from vold_trainer.pocket.world import make_examples
from vold_trainer.processes.optim import make_optimizer
from vold_trainer.processes.rounding import WeightSample
from vold_trainer.student.batching import make_batch
from vold_trainer.student.models import CompletionScorer, Student, load_student

RATES = (1e-6, 6e-6, 1e-5, 1e-4, 1e-3)
EXAMPLES, TOKENS = 16, 24


def changed_by_a_step(student: Student, lr: float) -> tuple[int, int]:
    """(weights that a step at `lr` changed, trainable weights with a gradient)."""
    scorer = CompletionScorer(student.model)
    optimizer, _ = make_optimizer(student.model, OptimConfig(lr=lr, warmup_steps=0), 1)
    examples = make_examples("train", EXAMPLES, modality="image")
    ids = torch.randint(20, 60, (EXAMPLES, TOKENS), generator=torch.Generator().manual_seed(0)).tolist()
    batch = make_batch(student, examples, ids)
    (-scorer(batch.inputs, batch.predicts_BS, batch.ids_N).logprobs_N.mean()).backward()
    parameters = [value for value in student.model.parameters() if value.grad is not None]
    before = [value.detach().clone() for value in parameters]
    reached = [value.grad != 0 for value in parameters]
    optimizer.step()
    parts = zip(before, parameters, reached, strict=True)
    return sum(int(((a != b) & r).sum()) for a, b, r in parts), sum(int(r.sum()) for r in reached)


def main() -> None:
    torch.set_num_threads(1)
    half = load_student(StudentConfig(path="pocket:student", dtype="bfloat16"))
    rows = []
    for lr in RATES:
        changed, total = changed_by_a_step(copy.deepcopy(half), lr)
        full = load_student(StudentConfig(path="pocket:student", dtype="float32", compute="bfloat16"))
        changed_full, total_full = changed_by_a_step(full, lr)
        rows.append(
            [
                f"{lr:g}",
                f"{changed:,} of {total:,}",
                f"{changed / total:.1%}",
                f"{WeightSample(half.model).movable(lr):.1%}",
                f"{changed_full / total_full:.1%}",
                f"{changed_full / total_full / (changed / total):.1f}x",
            ]
        )
    columns = ["lr", "bfloat16, changed", "share", "share said before", "float32, share", "float32 / bfloat16"]
    show("Weights that one step of AdamW changes, pocket student", columns, rows)


if __name__ == "__main__":
    main()
