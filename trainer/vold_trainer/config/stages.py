"""Overrides of commands that run several stages, each with a shipped config: [STAGE:]KEY=VALUE."""

import difflib
from collections.abc import Sequence
from pathlib import Path

from vold_trainer.config.base import Config
from vold_trainer.config.files import load
from vold_trainer.config.runs import EvalConfig, SftConfig, TracesConfig, TrainConfig
from vold_trainer.errors import UsageError

STAGES: dict[str, tuple[type[Config], tuple[str, ...], tuple[str, ...]]] = {
    "traces": (TracesConfig, ("traces",), ()),
    "sft": (SftConfig, ("sft",), ("traces=traces.jsonl",)),
    "train": (TrainConfig, ("grpo", "vold", "vold-candidates"), ("student.path=pocket:student",)),
    "eval": (EvalConfig, ("eval",), ("student.path=pocket:student",)),
}
"""Of each stage: the kind of its config, the shipped configs, and the keys that the command sets."""


def stage_and_key(override: str) -> tuple[str, str]:
    """Split `train:steps=5` into stage and override; the stage is empty if the override is for all stages."""
    stage, colon, rest = override.partition(":")
    return (stage, rest) if colon and "=" not in stage else ("", override)


def check_stages(overrides: Sequence[str]) -> None:
    """Load the config of every stage with its overrides. Raises UsageError, as the stage itself would in its turn."""
    for override in overrides:
        stage = stage_and_key(override)[0]
        if stage and stage not in STAGES:
            near = difflib.get_close_matches(stage, STAGES, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"the stages are {', '.join(STAGES)}"
            raise UsageError(f"--set {override!r}: {stage!r} is no stage; {hint}")
    for stage, (kind, names, keys) in STAGES.items():
        own = [key for name, key in map(stage_and_key, overrides) if name in ("", stage)]
        for name in names:
            load(kind, Path(f"pocket:{name}"), ["out=out", *keys, *own])
