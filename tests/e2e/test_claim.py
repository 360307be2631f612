"""The claim of the method in the pocket world: from the same cold start, prompts and seed, a second stage with the
teacher's term earns more reward than one without.
"""

from pathlib import Path
from statistics import fmean

import pytest
from vold_trainer.experiments.stages import Recipe, pocket_services
from vold_trainer.files import read_json_lines

COLD_START = (
    "traces:data.limit=600",
    *("sft:steps=300", "sft:batch=32", "sft:optim.schedule=cosine"),
)
"""Few traces, and a schedule that ends: what is left to gain in the second stage is reasoning, not the first stage's
unfinished imitation.
"""
SECOND_STAGE = ("train:rollout.prompts=32", "train:rollout.group=4", "train:diagnostics.every=0")
CANDIDATES = ("objective.divergence=reverse-kl", "objective.beta=1.0", "optim.lr=4e-4")
SEEDS = (101, 102, 103)


def mean_reward(out: Path) -> float:
    """Over all steps of a run."""
    return fmean(row["reward/mean"] for row in read_json_lines(out / "metrics.jsonl"))


@pytest.mark.slow
@pytest.mark.timeout(7200)
def test_with_the_teachers_term_a_second_stage_earns_more_reward(tmp_path):
    differences = []
    with pocket_services("local:pocket:teacher", "local:") as services:
        for seed in SEEDS:
            recipe = Recipe(tmp_path / str(seed), services, seed, (*COLD_START, *SECOND_STAGE))
            start = recipe.sft(recipe.traces()[0])
            recipe.train("grpo", start, "grpo", "optim.lr=1e-4")
            recipe.train("vold", start, "vold", *CANDIDATES)
            differences.append(mean_reward(recipe.out / "vold") - mean_reward(recipe.out / "grpo"))
    assert min(differences) > 0, differences
    assert fmean(differences) > 0.03, differences
