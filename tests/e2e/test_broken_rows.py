"""Rows at fault in the middle of a run: their groups are missing, and nothing else changes."""

import json
import shutil
from pathlib import Path

import pytest
from servers import serving
from vold_trainer.config import TrainConfig, load
from vold_trainer.errors import RunError
from vold_trainer.files import read_json_lines
from vold_trainer.pocket.world import make_examples
from vold_trainer.training import loop
from vold_trainer.training.generation import RolloutGenerator
from vold_trainer.training.train import run_train

GROUP = 2
SMALL = (
    *("student.path=pocket:student", f"rollout.group={GROUP}", "rollout.prompts=4", "rollout.max_tokens=16"),
    *("steps=4", "threads=1", "batch.micro=3", "missing.max_share=0.5", "samples_every=1"),
    # So small that the weights stay as they are: a group that is missing changes them.
    *("optim.lr=1e-12", "optim.warmup_steps=0", "diagnostics.every=1", "diagnostics.rollouts=4"),
)
BROKEN = 5
"""The row of the file whose picture is broken, from 0."""


def write_rows(folder: Path, *, broken: bool = True, count: int = 8, **changes) -> Path:
    """Pocket problems as JSONL with pictures. broken: the pixels of one picture are not there, though its header is."""
    (folder / "pictures").mkdir(parents=True)
    rows = []
    for index, example in enumerate(make_examples("train", count, modality="twin")):
        picture = folder / "pictures" / f"{index}.jpg"
        example.images[0].save(picture, quality=95)
        rows.append(
            {
                "id": f"q{index}",
                "prompt": example.messages[0]["content"][1]["text"],
                "twin": example.twin[0]["content"],
                "image": f"pictures/{index}.jpg",
                "reference": example.reference,
            }
        )
    rows[BROKEN] |= changes
    if broken:
        picture = folder / "pictures" / f"{BROKEN}.jpg"
        data = picture.read_bytes()
        picture.write_bytes(data[: len(data) // 2])
    file = folder / "rows.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


@pytest.fixture
def train(pocket_teacher, verifier):
    """Runs `vold train` on a file."""

    def run(out: Path, file: Path, *overrides: str, resume: bool = False) -> list[dict]:
        urls = [f"teacher.url={pocket_teacher.grpc}", f"verifier.url={verifier.grpc}"]
        data = f"data={{source: {file}}}"
        run_train(
            load(TrainConfig, Path("pocket:vold"), [f"out={out}", *urls, *SMALL, data, *overrides]), resume=resume
        )
        return read_json_lines(out / "metrics.jsonl")

    return run


@pytest.fixture
def generated(monkeypatch):
    """The batches that runs generate."""
    batches = []
    generate = RolloutGenerator.generate

    def recording(self, *arguments):
        batches.append(generate(self, *arguments))
        return batches[-1]

    monkeypatch.setattr(RolloutGenerator, "generate", recording)
    return batches


def before_step(monkeypatch, number: int, action) -> None:
    """Call `action` when step `number`, counted from 0, begins."""
    step = loop.Loop._step

    def acting(self, current):
        if current == number:
            action()
        return step(self, current)

    monkeypatch.setattr(loop.Loop, "_step", acting)


def messages(caplog) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.name == "vold.rows"]


def completions(batches) -> dict[tuple[int, int], tuple[str, tuple[int, ...]]]:
    return {(batch.step, r.row): (r.example.id, r.ids) for batch in batches for r in batch.scored.rollouts}


def test_a_broken_picture_costs_its_own_group_alone(tmp_path, train, generated, caplog):
    train(tmp_path / "whole", write_rows(tmp_path / "good", broken=False))
    whole = completions(generated)
    generated.clear()
    rows = train(tmp_path / "run", write_rows(tmp_path / "bad", broken=True))
    assert completions(generated) == {key: value for key, value in whole.items() if value[0] != f"q{BROKEN}"}
    assert len(whole) - len(completions(generated)) == 2 * GROUP  # it comes in both epochs
    assert [row["missing/rows"] for row in rows].count(1.0) == 2
    assert [row["missing/rows"] for row in rows].count(0.0) == 2
    assert all(row["missing/teacher"] == row["missing/verifier"] == 0 for row in rows)
    assert all(row["loss"] is not None and "overlap/ratio" in row for row in rows)
    (said,) = messages(caplog)
    assert f"rows.jsonl:{BROKEN + 1}: row 'q{BROKEN}': image" in said


def test_a_batch_that_a_checkpoint_holds_lacks_the_same_group(tmp_path, train):
    file, out = write_rows(tmp_path), tmp_path / "run"
    ahead = ("rollout.ahead=1", "diagnostics.every=0")
    rows = train(out, file, *ahead, "checkpoints.every=1", "checkpoints.keep_last=9")
    faulty = next(row["step"] for row in rows[1:] if row["missing/rows"])
    for step in range(faulty, 5):  # the checkpoint before it holds its batch
        shutil.rmtree(out / "checkpoints" / f"step-{step:06d}")
    resumed = train(out, file, *ahead, resume=True)
    for row, other in zip(rows, resumed, strict=True):
        for key in ("loss", "reward/mean", "teacher/k2", "length/mean", "missing/rows", "staleness"):
            assert row[key] == pytest.approx(other[key], rel=1e-5, abs=1e-6), (row["step"], key)


def test_the_config_may_say_that_a_broken_row_stops_the_run(tmp_path, train):
    message = (
        rf"rows\.jsonl:{BROKEN + 1}: row 'q{BROKEN}': image .* cannot be read: .*Mend the row, or set "
        r"data\.skip_broken=true.*step \d is saved"
    )
    file, out = write_rows(tmp_path), tmp_path / "run"
    with pytest.raises(RunError, match=message):
        train(out, file, "data.skip_broken=false")
    assert len(list((out / "checkpoints").glob("step-*"))) == 1


def test_pictures_that_vanish_cost_their_groups_and_past_the_limit_stop_the_run(
    tmp_path, train, generated, monkeypatch, caplog
):
    """One goes between its completions and the update, all go before the next step: no weight changes any more."""
    file, out = write_rows(tmp_path, broken=False), tmp_path / "run"
    generate = RolloutGenerator.generate

    def removing(self, step, examples):
        batch = generate(self, step, examples)
        if step == 0:
            examples[2].images.lazy_images[0].path.unlink()
        return batch

    monkeypatch.setattr(RolloutGenerator, "generate", removing)
    before_step(monkeypatch, 1, lambda: shutil.rmtree(tmp_path / "pictures"))
    with pytest.raises(RunError, match=r"100% of the scores were missing for 2 steps in a row.*mend .*rows\.jsonl:\d"):
        train(out, file, "missing.patience=2", "optim.lr=1e-3")
    rows = read_json_lines(out / "metrics.jsonl")
    assert [row["missing/rows"] for row in rows] == [1, 4, 4]
    assert [len(batch.scored.rollouts) for batch in generated] == [4 * GROUP, 0, 0]
    assert [row.get("loss") is None for row in rows] == [False, True, True]
    assert all(row["lr"] == 1e-3 for row in rows)
    assert len(messages(caplog)) == 8
    assert (out / "checkpoints" / "step-000003").is_dir()


def test_a_long_prompt_and_a_reference_that_the_verifier_refuses(tmp_path, train, caplog):
    """And every request of more than 3 items, which says nothing of the others."""
    with serving("verifier", "--workers", "1", "--max-items", "3") as strict:
        rows = train(
            *(tmp_path / "run", write_rows(tmp_path, broken=False, twin="3 + " * 3000, reference="1" * 70_000)),
            *(f"verifier.url={strict.grpc}", "steps=2"),
        )
    assert sum(row["missing/verifier"] for row in rows) == sum(row["missing/teacher"] for row in rows) == GROUP
    assert sum(row["missing/rows"] for row in rows) == 1
    assert "reference has 70,000 characters" in messages(caplog)[0]
