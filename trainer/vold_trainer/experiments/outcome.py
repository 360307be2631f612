"""The outcome of one row of one seed, read from its folder, as a line of a results file."""

import json
import platform
import re
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from statistics import fmean
from typing import Any

from vold_trainer.evaluation.answers import GREEDY, NAME
from vold_trainer.experiments.studies import PASSES, Study
from vold_trainer.files import read_json_lines
from vold_trainer.pocket.world import make_examples

LAST_STEPS = 10
"""Training steps over which the final reward of a row is averaged."""
FIRST_LINE = re.compile(r"<think>([^\n]*)\n")
"""Where a chain in the teacher's style restates the problem."""


def read_outcome(folder: Path, run: Path, row: str, seed: int, study: Study) -> dict[str, Any]:
    """One line: accuracies and misread shares in [0, 1], the mean reward over the whole second stage and over its last
    LAST_STEPS steps, pass@k if answers were sampled, and the versions it was measured with.

    folder: of the evaluation. run: of the second stage.
    """
    evaluation = json.loads((folder / "eval.json").read_text())
    steps = [line.get("reward/mean") for line in read_json_lines(run / "metrics.jsonl")]
    rewards = [reward for reward in steps if reward is not None]
    misread = misread_shares(folder / NAME, study)
    return {
        "row": row,
        "seed": seed,
        "n": evaluation["image"]["n"],
        "text_accuracy": evaluation["text"]["accuracy"],
        "image_accuracy": evaluation["image"]["accuracy"],
        "text_misread": misread.get("text"),
        "image_misread": misread.get("image"),
        **{
            f"{modality}_pass": {str(k): evaluation[modality]["sampled"][f"pass@{k}"]["value"] for k in PASSES}
            for modality in ("text", "image")
            if study.samples
        },
        "reward": fmean(rewards[-LAST_STEPS:]) if rewards else None,
        "reward_over_stage": fmean(rewards) if rewards else None,
        "versions": {"torch": version("torch"), "transformers": version("transformers"), "machine": platform.machine()},
    }


def misread_shares(answers: Path, study: Study) -> dict[str, float]:
    """For text and pictures: the share of greedy answers whose chain does not begin with the expression. Only chains in
    the teacher's style have such a line, so every answer of the base student counts as misread.
    """
    expressions = _expressions(study)
    misread: dict[str, list[bool]] = {}
    for line in read_json_lines(answers):
        if line.get("sample") == GREEDY and line["key"] in expressions:
            begun = FIRST_LINE.match(line["completion"])
            misread.setdefault(line["set"], []).append(begun is None or begun[1] != expressions[line["key"]])
    return {name: fmean(values) for name, values in misread.items()}


def _expressions(study: Study) -> Mapping[str, str]:
    """The expression of every problem of the evaluation, by the id of its example."""
    split: Any = study.split
    return {
        f"{example.id.removesuffix('-text')}-{modality}": example.meta["expression"]
        for example in make_examples(split, study.problems, modality="text")
        for modality in ("text", "image")
    }
