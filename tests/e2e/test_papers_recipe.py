"""The paper's recipe through the shipped configs and the command line, at tiny size: published files to ours, traces of
two replicas, the cold start, a step of the second stage, and the figures of the published pictures.
"""

import io
import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest
from paths import ROOT
from PIL import Image
from servers import serving
from tiny_students import tiny_student
from vold_trainer import cli
from vold_trainer.files import read_json_lines
from vold_trainer.pocket.shipped import checkpoint_path
from vold_trainer.pocket.world import make_examples
from vold_trainer.preparation.cli import app as prepare_app

CONFIGS = ROOT / "configs"
PROMPTS = 12

pytestmark = pytest.mark.slow


def vold(*words: object) -> None:
    if words[0] == "prepare":
        prepare_app([str(word) for word in words[1:]], standalone_mode=False)
    else:
        cli.app([str(word) for word in words], standalone_mode=False)


def published(folder):
    """The files as they are published: Mixture-of-Thoughts, orz57k and Geometry3K, of the pocket world's problems."""
    problems = make_examples("train", PROMPTS, modality="text", seed=3)
    thoughts = [
        {
            "messages": [
                {"role": "user", "content": p.prompt_text},
                {"role": "assistant", "content": "<think>?</think>"},
            ],
            "num_tokens": 3,
            "source": "math",
        }
        for p in problems
    ]
    pyarrow.parquet.write_table(pa.Table.from_pylist(thoughts), folder / "train-00000-of-00001.parquet")
    rows = [
        [{"from": "human", "value": p.prompt_text}, {"from": "assistant", "ground_truth": {"value": p.reference}}]
        for p in problems
    ]
    (folder / "orz_math_57k_collected.json").write_text(json.dumps(rows, indent=2))
    buffer = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (56, 56, 3), dtype=np.uint8)).save(buffer, "PNG")
    picture = {"images": [{"bytes": buffer.getvalue(), "path": None}], "problem": "<image>2 + 2?", "answer": "4"}
    pyarrow.parquet.write_table(pa.Table.from_pylist([picture, picture]), folder / "geometry3k.parquet")


def test_the_recipe_from_published_files_to_a_step_of_the_second_stage(tmp_path, pocket_teacher, verifier):
    published(tmp_path)
    student = tiny_student("qwen2.5-vl", tmp_path / "student")
    prompts, orz, geometry = (tmp_path / f"{name}.jsonl" for name in ("mixture-of-thoughts", "orz57k", "geometry3k"))
    vold("prepare", "mixture-of-thoughts", tmp_path / "train-00000-of-00001.parquet", "-o", prompts)
    vold("prepare", "orz57k", tmp_path / "orz_math_57k_collected.json", "-o", orz)
    vold("prepare", "geometry3k", tmp_path / "geometry3k.parquet", "-o", geometry)

    traces = tmp_path / "traces.jsonl"
    with serving("teacher", "--model", str(checkpoint_path("teacher"))) as second:
        urls = f"teacher.url=[{pocket_teacher.grpc}, {second.grpc}]"
        vold(
            "traces", CONFIGS / "traces_qwen3_8b.yaml", f"out={traces}", f"data.source={prompts}", urls, "max_tokens=96"
        )
    written = read_json_lines(traces)
    assert 0 < len(written) <= PROMPTS
    assert all(row["completion"] for row in written)

    sft = tmp_path / "sft"
    paths = [f"out={sft}", f"traces={traces}", f"student.path={student}"]
    vold("sft", CONFIGS / "sft_qwen2.5vl_3b.yaml", *paths, "steps=2", "batch=4", "threads=1")
    assert [row["step"] for row in read_json_lines(sft / "metrics.jsonl")] == [1, 2]

    out = tmp_path / "vold"
    services = [f"teacher.url={pocket_teacher.grpc}", f"verifier.url={verifier.grpc}"]
    small = ["rollout.prompts=2", "rollout.max_tokens=12", "steps=1", "threads=1", "teacher.sane=warn"]
    model = f"student.path={sft / 'model'}"
    vold("train", CONFIGS / "vold_qwen2.5vl_3b.yaml", f"out={out}", model, f"data.source={orz}", *services, *small)
    (row,) = read_json_lines(out / "metrics.jsonl")
    assert row["missing/teacher"] == row["missing/verifier"] == row["missing/rows"] == 0
    assert np.isfinite(row["loss"])
    assert any("Put the final answer in" in sample["prompt"] for sample in read_json_lines(out / "rollouts.jsonl"))

    evaluated = tmp_path / "eval"
    data = f"data=[{{source: '{geometry}'}}]"
    vold("eval", "pocket:eval", f"student.path={out / 'model'}", f"out={evaluated}", services[1], data, "max_tokens=8")
    assert "geometry3k" in (evaluated / "eval.json").read_text()
