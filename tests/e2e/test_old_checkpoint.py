"""A checkpoint that version 0.1.0 wrote, with a batch that it had generated ahead, resumes as it did there.

`tests/cases/run-of-0.1.0` holds the part of that run that a resumption needs: step 2 of 4, and the metrics of all four
steps. If the pocket world's checkpoints change, the metrics are those of another student: write such a run again with
the oldest version that can.
"""

import shutil
from pathlib import Path

import pytest
from paths import CASES
from vold_trainer.config import TrainConfig, load
from vold_trainer.files import read_json_lines
from vold_trainer.training.train import run_train

RUN = CASES / "run-of-0.1.0"
METRICS = ("loss", "loss/policy", "loss/teacher", "grad_norm", "lr", "reward/mean", "length/mean", "student/entropy",
           "teacher/gap", "teacher/k2", "staleness", "missing/teacher", "missing/verifier")  # fmt: skip


def test_a_checkpoint_of_an_older_version_resumes(tmp_path, pocket_teacher, verifier):
    shutil.copytree(RUN, tmp_path / "run")
    overrides = [f"out={tmp_path / 'run'}", f"teacher.url={pocket_teacher.grpc}", f"verifier.url={verifier.grpc}"]
    run_train(load(TrainConfig, Path(RUN / "config.yaml"), overrides), resume=True)
    before, now = (read_json_lines(folder / "metrics.jsonl") for folder in (RUN, tmp_path / "run"))
    assert [row["step"] for row in now] == [1, 2, 3, 4]
    assert now[:2] == before[:2]
    for old, new in zip(before[2:], now[2:], strict=True):
        for name in METRICS:
            assert new[name] == pytest.approx(old[name], rel=1e-3, abs=1e-6), (old["step"], name)
