"""`vold prepare` on hand-made rows of the published layouts: what it writes, what it drops, what it refuses."""

import io
import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from typer.testing import CliRunner
from vold_trainer.config import DataConfig
from vold_trainer.data.traces import TraceRules, read_trace_rows
from vold_trainer.errors import UsageError
from vold_trainer.preparation import GEOMETRY3K, MIXTURE_OF_THOUGHTS, ORZ57K, run_prepare
from vold_trainer.preparation.cli import app
from vold_trainer.sources import load_examples

TEMPLATE = "{{prompt}}\nPut the final answer in \\boxed{}."


def orz(question, answer):
    return [{"from": "human", "value": question}, {"from": "assistant", "ground_truth": {"value": answer}}]


def thoughts(question, completion="<think>hm</think> 2", source="math"):
    turns = [{"role": "user", "content": question}, {"role": "assistant", "content": completion}]
    return {"messages": turns, "num_tokens": 7, "source": source}


def png(shade):
    buffer = io.BytesIO()
    Image.fromarray(np.full((8, 9, 3), shade, np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()


def geometry(problem, shades, answer="55"):
    return {"images": [{"bytes": png(s), "path": None} for s in shades], "problem": problem, "answer": answer}


def write_json(path, value):
    path.write_text(json.dumps(value, ensure_ascii=False))
    return path


def write_parquet(path, rows):
    pyarrow.parquet.write_table(pa.Table.from_pylist(rows), path)
    return path


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


TEXTS = st.text(st.characters(codec="utf-8"), max_size=20)


@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(rows=st.lists(st.tuples(TEXTS, TEXTS | st.none()), min_size=1, max_size=5))
def test_every_question_of_orz57k_with_an_answer_is_an_example(tmp_path, rows):
    file, out = write_json(tmp_path / "orz.json", [orz(*row) for row in rows]), tmp_path / "out.jsonl"
    usable = [(q, a) for q, a in rows if q.strip() and a is not None and a.strip()]
    if not usable:
        with pytest.raises(UsageError, match="no row is left"):
            run_prepare(ORZ57K, [file], out, overwrite=True)
        return
    prepared = run_prepare(ORZ57K, [file], out, overwrite=True)
    assert (prepared.rows, prepared.kept) == (len(rows), len(usable))
    assert sum(prepared.dropped.values()) == len(rows) - len(usable)
    examples = load_examples(DataConfig(source=str(out), image_token=""))
    assert [(e.prompt_text, e.reference) for e in examples] == usable
    direct = load_examples(DataConfig(source=str(file), skip_broken=True, image_token=""))
    assert {(e.prompt_text, e.reference) for e in examples} <= {(e.prompt_text, e.reference) for e in direct}


def test_the_questions_of_mixture_of_thoughts_and_on_request_its_completions(tmp_path):
    files = [
        write_parquet(tmp_path / "train-00000-of-00002.parquet", [thoughts("1 + 1?"), thoughts(" ")]),
        write_parquet(tmp_path / "train-00001-of-00002.parquet", [thoughts("2 + 2?", "<think>4", "science")]),
    ]
    prepared = run_prepare(MIXTURE_OF_THOUGHTS, files, tmp_path / "prompts.jsonl")
    assert (prepared.rows, prepared.kept, dict(prepared.dropped)) == (3, 2, {"no question": 1})
    examples = load_examples(DataConfig(source=str(tmp_path / "prompts.jsonl")))
    assert [(e.id, e.prompt_text, e.category) for e in examples] == [
        ("mixture-of-thoughts-0", "1 + 1?", "math"),
        ("mixture-of-thoughts-2", "2 + 2?", "science"),
    ]
    run_prepare(MIXTURE_OF_THOUGHTS, files, tmp_path / "traces.jsonl", completions=True)
    traces = read_trace_rows(tmp_path / "traces.jsonl", lambda row: row, TraceRules())
    assert [trace.completion for trace in traces] == ["<think>hm</think> 2", "<think>4"]


def test_geometry3k_brings_its_pictures_along(tmp_path):
    rows = [geometry("<image>How large is A?", [10]), geometry("Compare.", [10, 200], " "), geometry("B?", [10, 200])]
    out = tmp_path / "data" / "geometry3k.jsonl"
    prepared = run_prepare(GEOMETRY3K, [write_parquet(tmp_path / "train.parquet", rows)], out)
    assert (prepared.kept, prepared.images, dict(prepared.dropped)) == (2, 2, {"no answer": 1})
    config = DataConfig(source=str(out), template=TEMPLATE)
    one, two = load_examples(config)
    assert [np.asarray(image)[0, 0, 0] for image in (*one.images, *two.images)] == [10, 10, 200]
    assert one.prompt_text == "[image]How large is A?\nPut the final answer in \\boxed{}."
    assert two.prompt_text.startswith("[image][image]B?")
    assert {path.suffix for path in (out.parent / "geometry3k-images").iterdir()} == {".png"}


@pytest.mark.parametrize(
    ("layout", "row", "said"),
    [
        (ORZ57K, {"question": "q", "answer": "a"}, r"rows\.json\[1\]: the row has 'question', which is not"),
        (ORZ57K, [*orz("q", "a"), orz("q", "a")[0]], r"\[1\]: a row is two turns, not \["),
        (ORZ57K, orz("q", [1]), r"\[1\]: field 'reference' is \[1\]: give the reference answer as text or a number"),
        (ORZ57K, orz(3, "a"), r"\[1\]: the question is 3, and no text"),
        (ORZ57K, [{**orz("q", "a")[0], "weight": 1}, orz("q", "a")[1]], r"the first turn has 'weight', which is not"),
        (ORZ57K, orz("q", "a")[::-1], r"the first turn has 'ground_truth', .* layout \(from, value\)"),
        (ORZ57K, orz("\ud83d", "a"), r"half of a character"),
        (MIXTURE_OF_THOUGHTS, {**thoughts("q"), "difficulty": 1}, r"\[1\]: the row has 'difficulty', which is not"),
        (MIXTURE_OF_THOUGHTS, {"messages": thoughts("q")["messages"]}, r"the row has no 'num_tokens'"),
        (MIXTURE_OF_THOUGHTS, {**thoughts("q"), "messages": thoughts("q")["messages"][::-1]}, "user is of 'assist"),
        (GEOMETRY3K, {"images": [], "problem": "p", "answer": "a"}, r"images is \[\], and no list of pictures"),
        (GEOMETRY3K, {"images": ["x.png"], "problem": "p", "answer": "a"}, r"an image is 'x.png', and holds no bytes"),
    ],
)  # fmt: skip
def test_a_row_of_another_layout_is_an_error_and_leaves_the_file_as_it_was(tmp_path, layout, row, said):
    good = {ORZ57K: orz("q", "a"), MIXTURE_OF_THOUGHTS: thoughts("q")}.get(layout, row)
    out = tmp_path / "out.jsonl"
    out.write_text("before\n")
    file = tmp_path / "rows.json"
    file.write_text(json.dumps([good, row]))
    with pytest.raises(UsageError, match=said) as raised:
        run_prepare(layout, [file], out, overwrite=True)
    assert layout.published in str(raised.value) or "half of" in said
    assert out.read_text() == "before\n"
    assert not list(tmp_path.glob("*.partial"))


def test_another_column_of_parquet_is_an_error_although_broken_rows_are_left_out(tmp_path):
    file = write_parquet(tmp_path / "rows.parquet", [{**geometry("p", [1]), "level": 3}])
    with pytest.raises(UsageError, match=r"rows\.parquet has 'level', which is not in this layout \(images, problem"):
        run_prepare(GEOMETRY3K, [file], tmp_path / "out.jsonl", skip_broken=True)
    broken = {**geometry("p", [1]), "images": [{"bytes": b"no picture", "path": None}]}
    file = write_parquet(tmp_path / "broken.parquet", [geometry("p", [1]), broken])
    with pytest.raises(UsageError, match=r"broken\.parquet\[1\]: an image: image cannot be read.*--skip-broken"):
        run_prepare(GEOMETRY3K, [file], tmp_path / "out.jsonl")
    assert run_prepare(GEOMETRY3K, [file], tmp_path / "out.jsonl", skip_broken=True).dropped == {"broken": 1}


def test_the_command_prints_a_table_and_says_what_it_follows(tmp_path):
    file, out = write_json(tmp_path / "orz.json", [orz("1 + 1?", "2"), orz("?", "")]), tmp_path / "out.jsonl"
    done = CliRunner().invoke(app, ["orz57k", str(file), "-o", str(out)])
    assert done.exit_code == 0, done.output
    for shown in ("read", "kept", "dropped: no answer", "written to"):
        assert shown in done.output
    assert lines(out) == [{"id": "orz57k-0", "prompt": "1 + 1?", "reference": "2"}]
    with pytest.raises(UsageError, match="exists: replace it with --overwrite"):
        run_prepare(ORZ57K, [file], out)
    with pytest.raises(UsageError, match="is one of the files to read"):
        run_prepare(ORZ57K, [out], out, overwrite=True)
    with pytest.raises(UsageError, match="does not exist"):
        run_prepare(ORZ57K, [tmp_path / "none.json"], tmp_path / "new.jsonl")
    for name, said in (("orz57k", "f6d1ec7"), ("mixture-of-thoughts", "ec22eec"), ("geometry3k", "EasyR1")):
        text = CliRunner().invoke(app, [name, "--help"]).output
        assert said in text
        assert "hand-made" in text
