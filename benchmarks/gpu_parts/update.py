"""The trainer: seconds and memory of a policy update in each setting, beside what `vold check` expects."""

import tempfile
from pathlib import Path
from typing import Any

from vold_trainer.checking.memory import ModelSize, estimate_memory
from vold_trainer.config import TrainConfig
from vold_trainer.processes.ranks import Ranks, make_accelerator
from vold_trainer.student.models import Student
from vold_trainer.training.update import PolicyUpdater

from gpu_parts import students
from gpu_parts.chips import causal_pairs, forward_flops
from gpu_parts.measure import GIB, Bench
from gpu_parts.tables import SETTINGS

COMPLETIONS = 4
FULL = {"dtype": "float32", "compute": "bfloat16", "freeze": ["vision", "projector"]}
LORA = {"dtype": "bfloat16", "lora": {"r": 16, "alpha": 32}}
RECOMPUTED = {"checkpoint_activations": True}
STUDENTS: dict[str, dict[str, Any]] = {
    "weights": FULL,
    "weights, recomputed": FULL | RECOMPUTED,
    "weights, micro-batches of 4": FULL,
    "LoRA": LORA,
    "LoRA, recomputed": LORA | RECOMPUTED,
    "weights, recomputed, Liger": FULL | RECOMPUTED | {"liger": True},
}
assert tuple(STUDENTS) == SETTINGS


def run(bench: Bench) -> None:
    ranks = Ranks(make_accelerator())
    for setting in SETTINGS:
        with tempfile.TemporaryDirectory() as folder:
            measure_setting(bench, setting, Path(folder), ranks)
        bench.free()


def measure_setting(bench: Bench, setting: str, folder: Path, ranks: Ranks) -> None:
    made: list[PolicyUpdater] = []
    keys = [key for key in bench.rows("update") if key[0] == setting]

    def measured(tokens: int) -> dict[str, Any]:
        if not made:
            made.append(make_updater(bench, setting, folder, ranks))
        return update(bench, made[0], tokens)

    for key in keys:
        bench.row("update", key, lambda key=key: measured(int(key[1])))
    if setting == SETTINGS[1] and made:
        batch = students.scored(made[0].student, COMPLETIONS, 2, *lengths(int(keys[0][1])))
        bench.profile("Trainer: a policy update", lambda: made[0].update(0, batch, made[0].objective.needs))


def make_updater(bench: Bench, setting: str, folder: Path, ranks: Ranks) -> PolicyUpdater:
    student = students.make(bench, folder, STUDENTS[setting])
    student.model.train()
    settings = {
        "out": folder,
        "student": {"path": str(folder), **STUDENTS[setting]},
        "objective": {"name": "vold"},
        "batch": {"micro": 4 if setting.endswith("of 4") else 1},
        "optim": {"lr": 1e-6},
    }
    return PolicyUpdater(TrainConfig.model_validate(settings), student, ranks)


def lengths(tokens: int) -> tuple[int, int]:
    """Tokens of the prompt and of the completion."""
    prompt = max(4, tokens // 8)
    return prompt, tokens - prompt


def update(bench: Bench, updater: PolicyUpdater, tokens: int) -> dict[str, Any]:
    student, config = updater.student, updater.config
    prompt, completion = lengths(tokens)
    batch = students.scored(student, COMPLETIONS, 2, prompt, completion)
    updater.update(0, batch, updater.objective.needs)
    bench.free()
    bench.begin_peak()
    seconds = bench.seconds(lambda: updater.update(0, batch, updater.objective.needs))
    peak = bench.peak_gib()
    real = sum(len(student.prompt_ids([one.example])[0]) + len(one.ids) for one in batch.rollouts)
    check = expected_gib(student, config, real // COMPLETIONS)
    flops = COMPLETIONS * forward_flops(
        student.model.config.get_text_config(), tokens, causal_pairs(tokens), completion
    )
    passes = 2 if config.student.lora is not None else 3
    return {
        "seconds": seconds,
        "tokens_s": real / seconds,
        "peak_share": bench.share(passes * flops, seconds),
        "peak_gib": peak,
        "check_gib": check,
        "check_ratio": check / peak if peak else None,
    }


def expected_gib(student: Student, config: TrainConfig, tokens: int) -> float:
    """What `vold check` says of the update."""
    own = config.student
    size = ModelSize.of(student.model, student.model.config.get_text_config(), own.dtype, own.compute, own.head_dtype)
    expected = estimate_memory(
        size,
        tokens=tokens,
        micro_batch=config.batch.micro,
        generation_batch=0,
        checkpointing=own.checkpoint_activations,
        fused=student.model.device.type == "cuda",
    )
    return expected.update / GIB
