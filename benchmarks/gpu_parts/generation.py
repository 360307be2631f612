"""The trainer: generation by `hf`, in its own process, at several batches."""

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from vold_trainer.rollout.hf import generate
from vold_trainer.student.models import Student

from gpu_parts import students
from gpu_parts.measure import Bench, SkippedError

NEW = {"real": 64, "tiny": 4}
"""Tokens of a completion. The prompts' pass is measured alone and taken off."""
CONFIGS = Path(__file__).parents[2] / "configs"


def run(bench: Bench) -> None:
    with tempfile.TemporaryDirectory() as folder:
        made: list[Student] = []
        speeds = {key: values["tokens_s"] for (table, key), values in bench.done.items() if table == "generation"}

        def student() -> Student:
            if not made:
                made.append(students.make(bench, Path(folder), {"dtype": "float32", "compute": "bfloat16"}))
            return made[0]

        for key in bench.rows("generation"):

            def measured(key: tuple[str, ...] = key) -> dict[str, Any]:
                values = generation(bench, student(), int(key[0]), int(key[1]))
                speeds[key] = values["tokens_s"]
                return values

            bench.row("generation", key, measured)
        if made:
            examples = [students.example(0, 300 if bench.size == "real" else 12)]
            bench.profile(
                "Trainer: generation of 5 completions",
                lambda: generate(made[0], examples, group=5, max_tokens=min(8, NEW[bench.size])),
            )
        for key in bench.rows("configs"):

            def of_step(name: str = key[0]) -> dict[str, Any]:
                if bench.size != "real":
                    raise SkippedError("the student is not of the config's size")
                return of_config(name, speeds)

            bench.row("configs", key, of_step)


def generation(bench: Bench, student: Student, prompt: int, batch: int) -> dict[str, Any]:
    group = min(5, batch)
    examples = [students.example(index, prompt) for index in range(batch // group)]
    new, sequences = NEW[bench.size], len(examples) * group

    def run(tokens: int) -> float:
        return bench.once(lambda: generate(student, examples, group=group, max_tokens=tokens, seed=1))

    run(2)
    first = run(1)
    bench.begin_peak()
    seconds = run(new) - first
    if seconds <= 0:
        raise SkippedError("the prompts' pass took as long as all tokens")
    step = seconds / (new - 1)
    return {"tokens_s": sequences / step, "step_ms": 1000 * step, "peak_gib": bench.peak_gib()}


def of_config(name: str, speeds: Mapping[tuple[str, ...], float]) -> dict[str, Any]:
    """Hours to generate the completions of a step of the config, all of them at their longest, at the measured tokens a
    second of the longest prompt and the config's batch. speeds: by (prompt, batch).
    """
    rollout = yaml.safe_load((CONFIGS / f"{name}.yaml").read_text())["rollout"]
    longest = max((key[0] for key in speeds), key=int, default="")
    speed = speeds.get((longest, str(rollout["batch"])))
    if speed is None:
        raise SkippedError(f"its batch of {rollout['batch']} was not measured")
    completions, tokens = rollout["prompts"] * rollout["group"], rollout["max_tokens"]
    return {"rollouts": completions, "tokens": tokens, "hours": completions * tokens / speed / 3600}
