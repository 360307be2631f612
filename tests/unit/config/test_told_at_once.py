"""A mistake in a config, and a file or model that it names and that is not there, is told before torch is imported."""

import json
import subprocess
import sys
import typing

import pytest
from vold_trainer.objectives import REGISTRY

SLOW = ("torch", "transformers", "accelerate")
FRESH = f"""
import contextlib, io, json, sys
def run(arguments):
    sys.argv = ["vold", *arguments]
    from vold_trainer import cli
    said = io.StringIO()
    with contextlib.redirect_stderr(said), contextlib.redirect_stdout(said):
        try:
            cli.main()
            status = 0
        except SystemExit as end:
            status = end.code
    return [status, " ".join(said.getvalue().split()), [name for name in {SLOW} if name in sys.modules]]
"""


def in_a_fresh_interpreter(code: str) -> list:
    """What `code` prints as JSON: nothing that this process has imported is there."""
    done = subprocess.run([sys.executable, "-c", FRESH + code], capture_output=True, text=True, check=True)
    return json.loads(done.stdout)


def test_every_kind_of_config_loads_without_torch():
    code = f"""
from pathlib import Path
from vold_trainer.config import EvalConfig, SftConfig, TracesConfig, TrainConfig, load
load(TracesConfig, Path("pocket:traces"), ["out=x"])
load(SftConfig, Path("pocket:sft"), ["out=x", "traces=y"])
load(EvalConfig, Path("pocket:eval"), ["out=x", "student.path=y"])
for name in {list(REGISTRY)}:
    own = ["objective.traces=z"] if name == "gkd" else []
    config = load(TrainConfig, Path("pocket:vold"), ["out=x", "student.path=y", f"objective.name={{name}}", *own])
    config.objective.needs
print(json.dumps([name for name in {SLOW} if name in sys.modules]))
"""
    assert in_a_fresh_interpreter(code) == []


TYPOS = [
    (["traces", "pocket:traces", "out=x", "tempersture=1"], "unknown key 'tempersture'; did you mean 'temperature'?"),
    (["sft", "pocket:sft", "out=x", "traces=y", "optim.lrr=1"], "unknown key 'optim.lrr'; did you mean 'lr'?"),
    (["train", "pocket:vold", "out=x", "student.path=y", "objective.name=volt"], "did you mean 'vold'?"),
    (["train", "pocket:vold", "out=x", "student.path=y", "objective.bata=1"], "'objective.bata'; did you mean 'beta'?"),
    (["eval", "pocket:eval", "out=x", "student.path=y", "sampling.m=4"], "unknown key 'sampling.m'"),
    (["demo", "--set", "train:optim.lrr=1"], "pocket:grpo: unknown key 'optim.lrr'; did you mean 'lr'?"),
    (["demo", "--set", "trian:optim.lr=1"], "--set 'trian:optim.lr=1': 'trian' is no stage; did you mean 'train'?"),
    (["ablation", "--set", "sft:stepz=4"], "pocket:sft: unknown key 'stepz'; did you mean 'steps'?"),
    (["check", "pocket:vold", "out=x", "student.path=y", "stps=4"], "unknown key 'stps'; did you mean 'steps'?"),
]
NOT_THERE = [
    (["traces", "pocket:traces", "out=x/t", "teacher.url=local:./no"], "teacher.url 'local:./no': there is no model"),
    (["sft", "pocket:sft", "out=x", "traces=no.jsonl"], "traces 'no.jsonl' does not exist: give a file"),
    (["train", "pocket:vold", "out=x", "student.path=/no/model"], "student.path '/no/model': there is no model folder"),
    (["eval", "pocket:eval", "out=x", "student.path=no/such/model"], "student.path 'no/such/model': there is no model"),
]


def test_every_command_tells_a_mistake_without_torch():
    cases = [*TYPOS, *NOT_THERE]
    for (arguments, expected), (status, said, slow) in zip(
        cases, in_a_fresh_interpreter(f"print(json.dumps([run(a) for a, _ in {cases}]))"), strict=True
    ):
        assert (status, slow) == (1, []), (arguments, said)
        assert expected in said, arguments


@pytest.mark.parametrize("objective", REGISTRY.values())
def test_what_an_objective_says_of_its_tensors_can_be_read(objective):
    assert typing.get_type_hints(objective.__call__)
