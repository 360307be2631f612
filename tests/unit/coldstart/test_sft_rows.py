"""SFT on encoded traces: the numbers of traces in memory, the loss on held-out ones, and the bound on tokens."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForImageTextToText
from vold_trainer.coldstart import rows, sft
from vold_trainer.config import SftConfig, load
from vold_trainer.data.digest import digest
from vold_trainer.data.keys import row_keys
from vold_trainer.data.traces import TraceRules
from vold_trainer.errors import UsageError
from vold_trainer.files import read_json_lines, write_lines
from vold_trainer.processes.ranks import Ranks, make_accelerator
from vold_trainer.report.panels import render_sections
from vold_trainer.report.read import read_runs
from vold_trainer.runs.checkpoint import list_checkpoints
from vold_trainer.sources.check import check_files
from vold_trainer.student.encoded import EncodedTraces
from vold_trainer.student.encoded.cache import encoded_folder
from vold_trainer.student.models import load_student
from vold_trainer.student.traces import read_traces

STEPS = 3


def write_traces(file, count, first=0):
    numbers = range(first, first + count)
    write_lines(
        file, [{"id": f"q{n}", "prompt": f"{n} + {n % 3}?", "completion": f"{n % 7} " * (1 + n % 4)} for n in numbers]
    )
    return file


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Seven traces to learn, of which a step of nine has some twice, and four others."""
    made = tmp_path_factory.mktemp("traces")
    write_traces(made / "traces.jsonl", 7)
    write_traces(made / "others.jsonl", 4, first=40)
    return made


def config(folder, name, *overrides):
    settings = [f"out={folder / name}", f"traces={folder / 'traces.jsonl'}", f"steps={STEPS}", "batch=9", "micro=5"]
    return load(SftConfig, Path("pocket:sft"), [*settings, "threads=1", "optim.warmup_steps=0", *overrides])


class InMemory(list):
    """Traces as lists of Python's numbers, as `read_traces` has them."""

    @property
    def lengths(self):
        return [len(trace.ids) for trace in self]

    @property
    def keys(self):
        return row_keys([trace.example for trace in self])

    def digest(self):
        return digest((trace.example, trace.ids) for trace in self)


def figures(out):
    """The metrics of each step that do not depend on the clock."""
    return [
        {key: value for key, value in row.items() if "time" not in key and "second" not in key}
        for row in read_json_lines(out / "metrics.jsonl")
    ]


@pytest.fixture(scope="module")
def in_memory(folder):
    def traces_in_memory(settings, student, ranks):
        return rows.RunTraces(InMemory(read_traces(settings.traces, student, rules=TraceRules(prefix=""))), None)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sft, "load_traces", traces_in_memory)
        sft.run_sft(config(folder, "memory"))
    return folder / "memory"


VALIDATION = ("validation.every=2", "checkpoints.every=2", "checkpoints.metric=validation/loss", "checkpoints.window=1")


@pytest.fixture(scope="module")
def validated(folder):
    overrides = [f"validation.file={folder / 'others.jsonl'}", *VALIDATION, "checkpoints.keep_best=1"]
    settings = config(folder, "validated", *overrides)
    sft.run_sft(settings)
    return settings


def test_losses_and_weights_are_those_of_traces_in_memory_to_the_last_bit(in_memory, validated):
    own = [{key: value for key, value in row.items() if key != "validation/loss"} for row in figures(validated.out)]
    assert own == figures(in_memory)
    assert len({row["loss"] for row in own}) == STEPS
    one, other = ((out / "model/model.safetensors").read_bytes() for out in (in_memory, validated.out))
    assert one == other
    contents = [list_checkpoints(out)[-1].state["content"] for out in (in_memory, validated.out)]
    assert contents[0] == contents[1]


@torch.no_grad()
def test_the_validation_loss_is_that_of_transformers_over_all_completion_tokens(validated):
    model = AutoModelForImageTextToText.from_pretrained(validated.out / "model").eval()
    student = load_student(validated.student)
    losses = []
    for trace in read_traces(validated.validation.file, student):
        (prompt,) = student.prompt_ids([trace.example])
        ids = torch.tensor([[*prompt, *trace.ids]])
        logprobs = model(input_ids=ids).logits[0, len(prompt) - 1 : -1].log_softmax(-1)
        losses += (-logprobs.gather(-1, ids[0, len(prompt) :, None])).flatten().tolist()
    by_step = {row["step"]: row.get("validation/loss") for row in figures(validated.out)}
    assert by_step[1] is None
    assert by_step[2] != by_step[3] == pytest.approx(np.mean(losses), rel=1e-5)


def test_a_resumed_run_measures_the_same_and_its_best_checkpoint_is_by_the_validation_loss(validated):
    before = figures(validated.out)
    scores = {checkpoint.step: checkpoint.score for checkpoint in list_checkpoints(validated.out)}
    assert scores == {row["step"]: row["validation/loss"] for row in before[1:]}
    shutil.rmtree(validated.out / "checkpoints/step-000003")
    sft.run_sft(validated, resume=True)
    assert figures(validated.out) == before


def test_the_report_has_a_panel_of_it(validated, in_memory):
    def titles(out):
        return [panel.title for group in render_sections(read_runs([out])) for panel in group.panels]

    assert "Loss on held-out traces" in titles(validated.out)
    assert "Loss on held-out traces" not in titles(in_memory)


@pytest.fixture(scope="module")
def student():
    return load_student(config(Path("none"), "none").student)


def encoded(file, student):
    return EncodedTraces(encoded_folder(file, student, TraceRules(prefix="")), file)


def test_a_trace_is_held_out_by_its_id_alone(folder, student):
    few = encoded(write_traces(folder / "few.jsonl", 100), student)
    many = encoded(write_traces(folder / "many.jsonl", 200), student)

    def divided(traces, share):
        learned, held_out = rows._divided(traces, share)
        assert sorted([*learned.keys, *held_out.keys]) == sorted(traces.keys)
        return set(held_out.keys)

    assert divided(few, 0.2) == divided(many, 0.2) & set(few.keys)
    assert divided(many, 0.2) < divided(many, 0.5)
    assert 20 < len(divided(many, 0.2)) < 60
    with pytest.raises(UsageError, match=r"validation\.share 1e-07 holds out none of 100 traces"):
        divided(few, 1e-7)


def test_longer_traces_are_dropped_and_counted_or_named(folder, student, capsys):
    ranks = Ranks(make_accelerator())
    whole = encoded(folder / "traces.jsonl", student)
    totals = [
        length + len(student.prompt_ids([trace.example])[0]) for trace, length in zip(whole, whole.lengths, strict=True)
    ]
    limit = sorted(totals)[3]
    long = [index for index, total in enumerate(totals) if total > limit]
    settings = config(folder, "limited", f"max_tokens={limit}", "too_long=drop")
    learned, held_out = rows.load_traces(settings, student, ranks)
    assert held_out is None
    assert list(learned.keys) == [key for index, key in enumerate(whole.keys) if index not in long]
    said = " ".join(capsys.readouterr().err.split())
    assert f"{len(learned)} traces, {sum(learned.lengths)} tokens to learn" in said
    assert f"dropped {len(long)} with more than max_tokens {limit}" in said
    with pytest.raises(UsageError, match=rf"traces\.jsonl:{long[0] + 1}: row 'q{long[0]}': its prompt has .* So are"):
        rows.load_traces(config(folder, "limited", f"max_tokens={limit}"), student, ranks)
    with pytest.raises(UsageError, match=r"max_tokens is 1, and each of the 7 traces"):
        rows.load_traces(config(folder, "limited", "max_tokens=1", "too_long=drop"), student, ranks)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["validation.file=nowhere.jsonl"], r"validation\.file 'nowhere\.jsonl' does not exist"),
        (["validation.share=1"], r"validation\.share"),
        (["validation.share=0.1", "validation.file=nowhere.jsonl"], r"file and share are both set"),
        (["max_tokens=0"], "max_tokens"),
        (["too_long=cut"], "too_long"),
    ],
)
def test_a_wrong_value_is_told_by_its_key(overrides, message, folder):
    with pytest.raises(UsageError, match=message):
        check_files(config(folder, "wrong", *overrides))
