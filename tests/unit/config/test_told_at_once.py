"""A mistake in a config, and a file or model that it names and that is not there, is told before torch is imported."""

import typing

import pytest
from fresh_interpreter import SLOW, in_a_fresh_interpreter
from vold_trainer.objectives import REGISTRY


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
    (["train", "pocket:sft", "out=x"], "pocket:sft holds the settings of `vold sft`: give it to that command"),
    (["eval", "pocket:traces", "out=x"], "pocket:traces holds the settings of `vold traces`"),
]
VOLD = ("pocket:vold", "out=x", "student.path=pocket:student")
NOT_THERE = [
    (["traces", "pocket:traces", "out=x/t", "teacher.url=local:./no"], "teacher.url 'local:./no': there is no model"),
    (["sft", "pocket:sft", "out=x", "traces=no.jsonl"], "traces 'no.jsonl' does not exist: give a file"),
    (["train", "pocket:vold", "out=x", "student.path=/no/model"], "student.path '/no/model': there is no model folder"),
    (["eval", "pocket:eval", "out=x", "student.path=no/such/model"], "student.path 'no/such/model': there is no model"),
    (["train", *VOLD, "teacher.url=host:41051"], "teacher.url: the URL 'host:41051' has no scheme"),
    (["train", *VOLD, "verifier.url=ftp://host"], "verifier.url: the URL 'ftp://host' has the scheme 'ftp'"),
    (["train", *VOLD, "teacher.url=[local:pocket:teacher, grpc://host]"], "the URL 'grpc://host' has no port"),
    (["train", *VOLD, "teacher=null", "teachers={a: {url: ''}}"], "teachers.a.url: the URL '' names no service"),
    (["traces", "pocket:traces", "out=x/t", "teacher.url=host"], "teacher.url: the URL 'host' has no scheme"),
    (["traces", "pocket:traces", "out=/"], "out '/' is a folder: name a file in it, such as '/traces.jsonl'"),
    (["traces", "pocket:traces", "out=x/t", "request=32"], "unknown key 'request'; did you mean 'in_flight'?"),
    (["traces", "pocket:traces", "out=x/t", "teacher.url=openai+http:/x"], "'openai+http:/x'"),
    (["eval", "pocket:eval", "out=x", "student.path=pocket:student", "verifier.url=:1"], "verifier.url: the URL ':1'"),
    (["demo", "--teacher-url", "host:1"], "--teacher-url: the URL 'host:1' has no scheme"),
    (["demo", "--teacher-url", "local:./no"], "--teacher-url 'local:./no': there is no model"),
    (["demo", "--verifier-url", "host"], "--verifier-url: the URL 'host' has no scheme"),
    (["demo", "--out", __file__], f"--out '{__file__}': '{__file__}' is no folder: name another place"),
    (["ablation", "--results", f"{__file__}/x"], f"--results '{__file__}/x': '{__file__}' is no folder"),
    (["train", *VOLD, "--resume", "--step", "best"], "'x' has no checkpoint of step 'best': there is none: leave"),
    (["prepare", "orz57k", "no.json", "-o", "x.jsonl"], "FILE 'no.json' does not exist: download it"),
    (["prepare", "geometry3k", __file__, "-o", "x.csv"], "--out 'x.csv': the file is JSONL: name it x.jsonl"),
    (["train", "pocket:vold", "out=/", "student.path=pocket:student", "--overwrite"], "which --overwrite would delete"),
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
