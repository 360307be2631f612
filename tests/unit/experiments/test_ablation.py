"""The studies of the ablation, and the results file that they grow."""

import dataclasses
import json

import pytest
from vold_trainer.config import TrainConfig, load
from vold_trainer.errors import UsageError
from vold_trainer.experiments.ablation import collect, find_rows, run_ablation
from vold_trainer.experiments.studies import (
    BASE,
    CHOSEN,
    CLAIM_SEEDS,
    RATES,
    STARTS,
    STUDIES,
    TUNING_SEEDS,
    parse_seeds,
)
from vold_trainer.report import write_ablation


def line(row: str, seed: int, image: float, text: float = 0.5) -> str:
    values = {"row": row, "seed": seed, "n": 100, "image_accuracy": image, "text_accuracy": text, "image_misread": 0.1}
    return json.dumps({**values, "reward_over_stage": 0.3})


def test_a_row_is_compared_with_the_baseline_seed_by_seed(tmp_path) -> None:
    lines = tmp_path / "test.jsonl"
    images = {"grpo": {11: 0.40, 12: 0.50, 13: 0.45}, "vold": {13: 0.46, 12: 0.53, 11: 0.45, 14: 0.9}}
    lines.write_text("\n".join(line(row, seed, image) for row in images for seed, image in images[row].items()))
    result = collect("claim", find_rows("claim", ["sft", "grpo", "vold"]), CLAIM_SEEDS, lines)
    sft, grpo, vold = result["rows"]
    assert sft["seeds"] == []
    assert grpo["minus"] == {}, "the baseline"
    assert [seed["seed"] for seed in vold["seeds"]] == [11, 12, 13, 14]
    assert vold["minus"]["image_accuracy"]["mean"] == pytest.approx(0.03)
    assert vold["minus"]["image_accuracy"]["says"] == "+3.0 ± 1.2, 3 of 3"
    assert vold["minus"]["text_accuracy"]["says"] == "+0.0 ± 0.0, 0 of 3"


def test_rows_of_one_name_are_the_same_run_in_every_study() -> None:
    settings: dict[tuple[str, str], object] = {}
    for study in STUDIES.values():
        assert study.baseline in study.by_name
        assert len(study.by_name) == len(study.rows)
        for row in study.rows:
            assert row.start == BASE or row.start in STARTS
            if row.objective is None:
                continue
            own = ["student.path=pocket:student", "out=out", *row.overrides]
            run = load(TrainConfig, f"pocket:{row.objective}", own).model_dump(), row.start, row.teacher, row.control
            assert settings.setdefault((study.split, row.name), run) == run, row.name


def test_the_shipped_configs_have_the_chosen_rates_and_every_arm_is_run_at_every_rate() -> None:
    shipped = {"grpo": "grpo", "vold": "vold", "candidates": "vold-candidates"}
    for arm, name in shipped.items():
        config = load(TrainConfig, f"pocket:{name}", ["student.path=pocket:student"])
        assert config.optim.lr == float(CHOSEN[arm])
    for arm, chosen in CHOSEN.items():
        assert chosen in RATES
        names = {arm if rate == chosen else f"{arm}@{rate}" for rate in RATES}
        assert names <= STUDIES["claim"].by_name.keys()
    assert not set(TUNING_SEEDS) & set(CLAIM_SEEDS)


def test_unknown_studies_and_rows_are_refused_before_anything_starts(tmp_path) -> None:
    with pytest.raises(UsageError, match="'vold2' is no row of the study 'claim'; choose from sft, grpo"):
        run_ablation(tmp_path, tmp_path, only=["vold2"])
    with pytest.raises(UsageError, match="--study 'clam' is no study; choose from tuning, claim"):
        run_ablation(tmp_path, tmp_path, study="clam")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("text", "seeds"), [("11-13", (11, 12, 13)), ("4", (4,)), ("7,3,7", (7, 3)), ("0-0", (0,))]
)  # fmt: skip
def test_seeds_are_a_range_or_a_list(text, seeds) -> None:
    assert parse_seeds(text) == seeds


@pytest.mark.parametrize("text", ["", "3-1", "1-2000", "a", "1,", "-1", "1.5", "9999999"])
def test_other_texts_are_no_seeds(text) -> None:
    with pytest.raises(UsageError, match="write a range as 11-18, or a list as 11,13"):
        parse_seeds(text)


def test_rows_that_have_a_result_are_not_run_again(tmp_path) -> None:
    """Nothing is missing here, so that the command only writes the table."""
    results = tmp_path / "results"
    results.mkdir()
    rows = [line(row, seed, 0.4 + 0.01 * place) for place, row in enumerate(("grpo", "vold")) for seed in (11, 12)]
    (results / "test.jsonl").write_text("\n".join(rows) + "\n")
    result = run_ablation(tmp_path / "runs", results, study="claim", seeds=(11, 12), only=["grpo", "vold"], workers=2)
    assert [len(row["seeds"]) for row in result["rows"]] == [2, 2]
    table = (results / "claim.md").read_text()
    assert "| VOLD, the paper's form, 2e-4 | 41.0 ± 0.0 | 50.0 ± 0.0 | +1.0 ± 0.0, 2 of 2, p 0.5 |" in table
    assert not (tmp_path / "runs" / "seed-11").exists()


def test_the_table_of_sampled_answers_has_pass_at_k(tmp_path) -> None:
    lines = [
        json.loads(line("grpo", seed, 0.4))
        | {"image_pass": {"32": high, "8": 0.5, "1": 0.25}, "text_pass": {"8": 0.75}}
        for seed, high in ((11, 0.5), (12, 0.75))
    ]
    result = {"title": "t", "command": "c", "split": "test", "n": 200, "rows": [{"label": "GRPO", "seeds": lines}]}
    table, _ = write_ablation(result, tmp_path)
    head, _, row = table.read_text().splitlines()[-3:]
    assert "| pictures pass@1, % | pictures pass@8, % | pictures pass@32, % | text pass@8, % |" in head
    assert "| 25.0 ± 0.0 | 50.0 ± 0.0 | 62.5 ± 17.7 | 75.0 ± 0.0 |" in row


def test_a_control_shuffles_scores_within_a_completion() -> None:
    torch = pytest.importorskip("torch")
    from vold_trainer.experiments.controls import ShuffledVold, shuffled
    from vold_trainer.objectives import Rollouts, Vold

    generator = torch.Generator().manual_seed(0)
    logprobs = -torch.rand(3, 8, generator=generator)
    mask = torch.arange(8) < torch.tensor([8, 5, 3]).unsqueeze(1)
    rollouts = Rollouts(
        logprobs_CT=logprobs,
        old_logprobs_CT=logprobs,
        mask_CT=mask,
        advantages_C=torch.zeros(3),
        rewarded_C=torch.ones(3, dtype=torch.bool),
        correct_C=torch.zeros(3, dtype=torch.bool),
        teacher_logprobs_CT=-torch.rand(3, 8, generator=generator),
        teacher_mask_CT=mask,
    )
    config = load(TrainConfig, "pocket:vold", ["student.path=pocket:student", "objective.beta=0.7"])
    objective = shuffled(config).objective
    assert isinstance(objective, ShuffledVold)
    assert objective.beta == 0.7
    assert objective(rollouts).loss != Vold(beta=0.7)(rollouts).loss
    flat = dataclasses.replace(rollouts, teacher_logprobs_CT=torch.full((3, 8), -1.5))
    assert objective(flat).loss == Vold(beta=0.7)(flat).loss, "nothing to shuffle where all scores are equal"
    with pytest.raises(UsageError, match="grpo"):
        shuffled(load(TrainConfig, "pocket:grpo", ["student.path=pocket:student"]))


def test_teachers_that_are_made_differ_from_the_pocket_teacher_where_they_should(tmp_path) -> None:
    from safetensors.torch import load_file
    from vold_trainer.experiments.controls import perturbed_student, uniform_teacher, weak_teacher
    from vold_trainer.pocket.shipped import checkpoint_path

    shipped = load_file(checkpoint_path("teacher") / "model.safetensors")
    uniform = load_file(uniform_teacher(tmp_path / "uniform") / "model.safetensors")
    weak = load_file(weak_teacher(tmp_path / "weak") / "model.safetensors")
    assert {name for name in shipped if not shipped[name].equal(uniform[name])} == {"model.norm.weight"}
    assert not uniform["model.norm.weight"].any()
    matrices = {name for name, weight in shipped.items() if weight.ndim > 1 and "embed" not in name}
    assert {name for name in shipped if not shipped[name].equal(weak[name])} == matrices
    again = load_file(weak_teacher(tmp_path / "again") / "model.safetensors")
    assert all(weak[name].equal(again[name]) for name in weak)
    base = load_file(checkpoint_path("student") / "model.safetensors")
    moved = load_file(perturbed_student(tmp_path / "student", 1e-6) / "model.safetensors")
    assert all(moved[name].equal(weight.float() * (1 + 1e-6)) for name, weight in base.items())
