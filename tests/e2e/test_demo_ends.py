"""A demo that is killed while its second stages train in processes of their own."""

import signal
import subprocess
import sys
import time
from pathlib import Path

import programs
import pytest
from vold_trainer.experiments.demo import SECOND_STAGES
from vold_trainer.files import read_json_lines

STEPS = 30
SMALL = (
    *("traces:data.limit=64", "sft:steps=2", f"train:steps={STEPS}", "train:data.limit=64", "train:rollout.prompts=2"),
    *("train:rollout.group=2", "eval:data.0.limit=4", "eval:data.1.limit=4"),
)


def steps_of(out: Path) -> list[list[int]]:
    return [[row["step"] for row in read_json_lines(out / name / "metrics.jsonl")] for name in SECOND_STAGES]


@pytest.mark.slow
@pytest.mark.timeout(1500)  # two demos
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_a_killed_demo_leaves_checkpoints_from_which_it_goes_on(tmp_path, pocket_teacher, verifier, number):
    out = tmp_path / "demo"
    command = [sys.executable, "-m", "vold_trainer", "demo", "--out", str(out)]
    command += ["--teacher-url", pocket_teacher.grpc, "--verifier-url", verifier.grpc]
    command += [part for override in SMALL for part in ("--set", override)]
    process = programs.start(command, stderr=subprocess.DEVNULL)
    while not all(len(steps) > 1 for steps in steps_of(out)):
        assert process.poll() is None
        time.sleep(0.05)
    process.send_signal(number)
    assert process.wait(60) != 0
    while any((out / name / ".run.lock").exists() for name in SECOND_STAGES):  # their processes save and end
        time.sleep(0.05)
    before = steps_of(out)
    assert all(1 < len(steps) < STEPS for steps in before)
    assert all(list((out / name / "checkpoints").glob("step-*")) for name in SECOND_STAGES)
    done = programs.run(command)
    assert done.returncode == 0, done.stderr
    assert steps_of(out) == [list(range(1, STEPS + 1))] * 3
