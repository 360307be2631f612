"""What the component table says of two rows, from numbers worked out by hand."""

import pytest
from vold_trainer.errors import UsageError
from vold_trainer.experiments.ablation import ROWS, compare_rows


def row(name: str, accuracies: dict[int, float]) -> dict:
    seeds = [{"seed": seed, "image_accuracy": accuracy} for seed, accuracy in accuracies.items()]
    return {"name": name, "label": name.upper(), "seeds": seeds}


def test_the_comparison_pairs_seeds_and_states_their_spread() -> None:
    found = compare_rows([row("sft-grpo", {0: 0.40, 1: 0.50, 2: 0.45}), row("vold", {2: 0.46, 1: 0.53, 0: 0.45})])
    assert found is not None
    assert found["differences"] == pytest.approx([0.05, 0.03, 0.01])
    assert found["mean"] == pytest.approx(0.03)
    assert found["spread"] == pytest.approx(0.02)
    assert "VOLD minus SFT-GRPO, pictures, seed by seed: +5.0, +3.0, +1.0; mean +3.0 ± 2.0 points" in found["says"]


def test_one_seed_or_one_row_is_no_comparison() -> None:
    assert compare_rows([row("sft-grpo", {0: 0.4}), row("vold", {0: 0.5, 1: 0.5})]) is None
    assert compare_rows([row("vold", {0: 0.5, 1: 0.5})]) is None


def test_the_rows_are_the_components_of_the_paper() -> None:
    named = {one.name: one for one in ROWS}
    assert len(named) == len(ROWS)
    assert named["vold"].start == named["sft-grpo"].start == "sft"
    assert named["grpo-only"].start == named["opd-only"].start == named["vold-no-sft"].start == "base"


def test_an_unknown_row_is_refused_before_anything_starts(tmp_path) -> None:
    from vold_trainer.experiments.ablation import run_ablation

    with pytest.raises(UsageError, match="'vold2' is no row; choose from base, sft"):
        run_ablation(tmp_path, tmp_path, only=["vold2"])
