"""Rows at fault in the middle of a run: their groups are missing, and nothing else changes."""

import json
import shutil
from pathlib import Path

import pytest
from safetensors.torch import load_file
from vold_trainer.config import TrainConfig, load
from vold_trainer.errors import RunError
from vold_trainer.files import read_json_lines
from vold_trainer.pocket.world import make_examples
from vold_trainer.runs.saving import Saver
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


def write_rows(folder: Path, *, broken: bool, count: int = 8, **changes) -> Path:
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
        run_train(load(TrainConfig, Path("pocket:vold"), [f"out={out}", *urls, *SMALL, data, *overrides]), resume=resume)
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
    (said,) = [record.getMessage() for record in caplog.records if record.name == "vold.rows"]
    assert f"rows.jsonl:{BROKEN + 1}: row 'q{BROKEN}': image" in said
