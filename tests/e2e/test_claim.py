"""The claim of the method, by the mean reward over the second stage: a quarter of an hour on two cores."""

from dataclasses import replace

import pytest
from vold_trainer.experiments import ablation, studies
from vold_trainer.experiments.ablation import run_ablation

SEEDS = (11, 12, 13)


@pytest.mark.slow
@pytest.mark.timeout(7200)
def test_the_teachers_term_raises_the_reward_over_the_stage(tmp_path, pocket_teacher, verifier, monkeypatch):
    """The rows of a seed share traces, start and prompts, so a difference is the objective's."""
    monkeypatch.setattr(ablation, "TEACHERS", {studies.TEACHER: pocket_teacher.grpc})
    monkeypatch.setattr(ablation, "VERIFIER", verifier.grpc)
    few = {**studies.STUDIES, "claim": replace(studies.STUDIES["claim"], problems=20)}
    monkeypatch.setattr(studies, "STUDIES", few)
    monkeypatch.setattr(ablation, "STUDIES", few)
    rows = ["grpo", "vold", "candidates"]
    result = run_ablation(tmp_path / "runs", tmp_path / "results", study="claim", seeds=SEEDS, workers=2, only=rows)
    grpo, paper, candidates = ([line["reward_over_stage"] for line in row["seeds"]] for row in result["rows"])
    assert all(with_term > without for with_term, without in zip(candidates, grpo, strict=True))
    assert sum(candidates) - sum(grpo) > 0.06 * sum(grpo)
    assert sum(paper) > sum(grpo)
