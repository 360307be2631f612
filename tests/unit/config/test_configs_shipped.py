"""Every config under configs/ loads as the stage that its header's command runs."""

import re
import shlex

import pytest
import typer
from paths import ROOT
from vold_trainer.config import EvalConfig, SftConfig, TracesConfig, TrainConfig, load
from vold_trainer.preparation.cli import app as prepare_app

KINDS = {"traces": TracesConfig, "sft": SftConfig, "train": TrainConfig, "eval": EvalConfig}
FILES = sorted(path.relative_to(ROOT) for path in (ROOT / "configs").glob("**/*.yaml"))


def test_there_are_configs():
    assert FILES


@pytest.mark.parametrize("path", FILES, ids=str)
def test_a_shipped_config_loads(path):
    command = re.search(rf"^#\s+vold (\w+) {re.escape(str(path))}((?: \S+=\S+)*)$", (ROOT / path).read_text(), re.M)
    assert command, f"{path}: the header has no line `#   vold STAGE {path}`"
    loaded = load(KINDS[command[1]], ROOT / path, command[2].split())
    assert not loaded.out.is_absolute()


def makers(text):
    """(words, output) of each command in a config's header that makes a file."""
    for line in re.findall(r"^#\s+vold (.+)$", text, re.M):
        words = shlex.split(line)
        if words[0] == "prepare":
            context = typer.main.get_command(prepare_app).commands[words[1]].make_context(words[1], words[2:])
            yield words, context.params["out"]
        elif words[0] == "traces":
            yield words, load(TracesConfig, ROOT / words[1]).out


@pytest.mark.parametrize("path", FILES, ids=str)
def test_every_file_that_a_config_names_has_a_command_that_makes_it(path):
    text = (ROOT / path).read_text()
    made = {str(out) for _, out in makers(text)}
    named = re.findall(r"^data:\s+(?:\{source: |source: )([^\s}]+)|^traces: (\S+)", text, re.M)
    files = {source or traces for source, traces in named}
    assert files
    assert files <= made


def test_the_papers_stages_fit_together():
    traces = load(TracesConfig, ROOT / "configs/traces_qwen3_8b.yaml")
    sft = load(SftConfig, ROOT / "configs/sft_qwen2.5vl_3b.yaml")
    vold = load(TrainConfig, ROOT / "configs/vold_qwen2.5vl_3b.yaml")
    assert sft.traces == traces.out
    assert vold.student.path == str(sft.out / "model")
    assert vold.teacher is not None
    assert vold.teacher.url == traces.teacher.url
    assert (vold.rollout.group, vold.steps, vold.optim.lr) == (5, 60, 6e-6)
    assert (sft.steps, sft.batch, sft.optim.lr, sft.optim.warmup_steps) == (4000, 256, 5e-5, 150)
