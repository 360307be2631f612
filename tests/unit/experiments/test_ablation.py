"""The comparison of two rows of the component table, against numbers worked out by hand."""

import pytest
from vold_trainer.errors import UsageError
from vold_trainer.experiments.ablation import ROWS, compare_rows


def row(name: str, accuracies: dict[int, float]) -> dict:
    seeds = [{"seed": seed, "image_accuracy": accuracy} for seed, accuracy in accuracies.items()]
    return {"name": name, "label": name.upper(), "seeds": seeds}


def test_the_comparison_pairs_seeds_and_states_their_spread() -> None:
    comparison = compare_rows([row("sft-grpo", {0: 0.40, 1: 0.50, 2: 0.45}), row("vold", {2: 0.46, 1: 0.53, 0: 0.45})])
    assert comparison is not None
    assert comparison["differences"] == pytest.approx([0.05, 0.03, 0.01])
    assert comparison["mean"] == pytest.approx(0.03)
    assert comparison["spread"] == pytest.approx(0.02)
    assert "VOLD minus SFT-GRPO, pictures, seed by seed: +5.0, +3.0, +1.0; mean +3.0 ± 2.0 points" in comparison["says"]


def test_one_seed_or_one_row_is_no_comparison() -> None:
    assert compare_rows([row("sft-grpo", {0: 0.4}), row("vold", {0: 0.5, 1: 0.5})]) is None
    assert compare_rows([row("vold", {0: 0.5, 1: 0.5})]) is None


def test_the_rows_are_the_components_of_the_paper() -> None:
    rows = {row.name: row for row in ROWS}
    assert len(rows) == len(ROWS)
    assert rows["vold"].start == rows["sft-grpo"].start == "sft"
    assert rows["grpo-only"].start == rows["opd-only"].start == rows["vold-no-sft"].start == "base"


def test_an_unknown_row_is_refused_before_anything_starts(tmp_path) -> None:
    from vold_trainer.experiments.ablation import run_ablation

    with pytest.raises(UsageError, match="'vold2' is no row; choose from base, sft"):
        run_ablation(tmp_path, tmp_path, only=["vold2"])
