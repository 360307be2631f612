"""Prompts that a template writes from a row's columns."""

import json

import pytest
from vold_trainer.config import DataConfig
from vold_trainer.errors import UsageError
from vold_trainer.sources.examples import check_source, load_examples

BOXED = "{{problem}}\nPut the answer in \\boxed{}."


@pytest.fixture
def rows(tmp_path):
    file = tmp_path / "rows.jsonl"
    file.write_text(
        "".join(
            json.dumps({"problem": f"What is {n}+1?", "answer": n + 1, "level": {"name": "easy"}, "prompt": "unread"})
            + "\n"
            for n in range(2)
        )
    )
    return file


def prompts(source, template, **options):
    return [
        example.messages[-1]["content"]
        for example in load_examples(DataConfig(source=str(source), template=template, **options))
    ]


def test_a_template_writes_the_prompt_from_the_columns(rows):
    assert prompts(rows, BOXED) == [f"What is {n}+1?\nPut the answer in \\boxed{{}}." for n in range(2)]
    assert prompts(rows, "[{{level.name}}] {{problem | upper}}", limit=1) == ["[easy] WHAT IS 0+1?"]
    (example,) = load_examples(DataConfig(source=str(rows), template=BOXED, system="Be brief.", limit=1))
    assert [message["role"] for message in example.messages] == ["system", "user"]
    assert example.reference == "1"


def test_a_template_reads_columns_of_parquet(tmp_path):
    pa = pytest.importorskip("pyarrow")
    import pyarrow.parquet as pq

    pq.write_table(pa.table({"problem": ["1+1"], "answer": ["2"], "other": [3]}), tmp_path / "rows.parquet")
    assert prompts(tmp_path / "rows.parquet", "{{problem}}={{other}}?") == ["1+1=3?"]


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("{{problm}}", r"rows.jsonl:1: data.template names the column 'problm', and the row has problem, answer"),
        ("{{problem.solve()}}", r"rows.jsonl:1: data.template cannot be filled in \(UndefinedError"),
        ("{{problem.__class__.__mro__}}", r"rows.jsonl:1: data.template cannot be filled in \(SecurityError"),
        ("{% if false %}{{problem}}{% endif %}", r"rows.jsonl:1: data.template gives an empty prompt"),
    ],
)
def test_a_row_that_the_template_does_not_fit_is_named(rows, template, message):
    with pytest.raises(UsageError, match=message):
        prompts(rows, template)


def test_a_null_is_no_text(tmp_path):
    file = tmp_path / "rows.jsonl"
    file.write_text(json.dumps({"problem": None, "answer": 1}) + "\n" + json.dumps({"problem": "2?", "answer": 2}))
    with pytest.raises(UsageError, match=r"rows.jsonl:1: data.template names the column 'problem', which is null here"):
        prompts(file, BOXED)
    assert len(prompts(file, BOXED, skip_broken=True)) == 1


def test_what_is_no_template_is_told_before_a_row_is_read(rows):
    with pytest.raises(UsageError, match=r"data\.template is no Jinja template"):
        check_source(DataConfig(source=str(rows), template="{{problem"))
    for options in ({"source": "pocket"}, {"source": str(rows), "adapter": "geometry3k"}):
        with pytest.raises(ValueError, match="writes its own prompts"):
            DataConfig(template=BOXED, **options)
