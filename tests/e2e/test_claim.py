"""The claim of the method in the pocket world: from the same cold start, prompts and seed, a second stage with the
teacher's term earns more reward than one without.
"""

from pathlib import Path
from statistics import fmean

import pytest
from vold_trainer.experiments.stages import Recipe, pocket_services
from vold_trainer.files import read_json_lines

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
            recipe = Recipe(tmp_path / str(seed), services, seed, ("train:diagnostics.every=0",))
            start = recipe.sft(recipe.traces()[0])
            recipe.train("grpo", start, "grpo")
            recipe.train("vold-candidates", start, "candidates")
            differences.append(mean_reward(recipe.out / "candidates") - mean_reward(recipe.out / "grpo"))
    assert min(differences) > 0, differences
    assert fmean(differences) > 0.03, differences
