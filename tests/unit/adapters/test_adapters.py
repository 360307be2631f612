"""Rows in the columns of each benchmark become examples that the verifier verifies as the benchmark would."""

import contextlib
import io
import json
import re

import pyarrow
import pyarrow.parquet
import pytest
from benchmark_rows import CASES, PICTURE, dynamath, mathverse, mathvista, mmmu_pro, stored, wemath
from hypothesis import given
from hypothesis import strategies as st
from paths import ROOT
from PIL import Image
from vold_client import Item, VerifierClient
from vold_trainer.adapters import Outcome
from vold_trainer.adapters.registry import REGISTRY, adapt
from vold_trainer.config import DataConfig
from vold_trainer.errors import UsageError
from vold_trainer.sources import load_examples


def test_every_adapter_has_rows_here():
    assert {case.adapter for case in CASES} == set(REGISTRY)


@pytest.mark.parametrize("case", CASES, ids=[case.name for case in CASES])
@pytest.mark.parametrize("wording", ["boxed", "own"])
def test_a_row_becomes_an_example(case, wording):
    example = adapt(case.adapter, case.row, "rows:1", wording=wording)
    assert (example.reference, example.meta["verifier"]) == (case.reference, case.verifier)
    assert example.category == case.category
    content = example.messages[-1]["content"]
    places = 0 if isinstance(content, str) else sum(part["type"] == "image" for part in content)
    assert len(example.images) == places == case.images
    assert all(image.mode == "RGB" for image in example.images)
    json.dumps(dict(example.meta))  # what goes over the wire is plain data
    if wording == "boxed":
        assert r"\boxed{}" in example.prompt_text
        assert all(words in example.prompt_text for words in case.says), example.prompt_text


@pytest.mark.parametrize("case", CASES, ids=[case.name for case in CASES])
@pytest.mark.parametrize("wording", ["boxed", "own"])
def test_an_adapter_reads_the_columns_that_it_names_and_no_others(case, wording):
    named = {column: value for column, value in case.row.items() if column in REGISTRY[case.adapter].columns}
    example, same = (adapt(case.adapter, row, "rows:1", wording=wording) for row in (case.row, named))
    assert (same.id, same.messages, same.reference) == (example.id, example.messages, example.reference)
    assert (same.category, same.meta, len(same.images)) == (example.category, example.meta, case.images)


class RecordingRow(dict):
    """A row that records which of its columns were read."""

    def __init__(self, columns):
        super().__init__(columns)
        self.read_columns = set()

    def get(self, column, default=None):
        self.read_columns.add(column)
        return super().get(column, default)


def test_only_named_columns_are_read():
    for case in CASES:
        row = RecordingRow(case.row)
        adapt(case.adapter, row, "rows:1", wording="own")
        assert row.read_columns <= set(REGISTRY[case.adapter].all_columns)


def test_the_guide_names_every_adapter_with_its_columns_and_figures():
    guide = (ROOT / "docs/guides/evaluate.md").read_text()
    rows = {cells[1].strip(" `"): cells for line in guide.splitlines() if len(cells := line.split("|")) == 8}
    for name, adapter in REGISTRY.items():
        _, _, source, columns, verifiers, *_ = rows[name]
        assert adapter.source in source
        assert re.findall(r"`(.+?)`", columns) == list(adapter.columns)
        assert {case.verifier for case in CASES if case.adapter == name} == set(re.findall(r"`(.+?)`", verifiers))


def test_the_verifier_pays_right_answers_and_no_wrong_ones(verifier):
    items, expected = [], []
    for case in CASES:
        example = adapt(case.adapter, case.row, "rows:1")
        for correct, completions in ((True, case.right), (False, case.wrong)):
            for completion in completions:
                meta = example.meta
                items.append(
                    Item(meta["verifier"], completion, case.reference, example.prompt_text, meta["parameters"])
                )
                expected.append((case.name, completion, correct))
    with VerifierClient(verifier.grpc) as client:
        verdicts = client.verify(items)
    assert [(name, text, v.correct) for (name, text, _), v in zip(expected, verdicts, strict=True)] == expected


def test_own_wordings_answers_need_no_box(verifier):
    """A prompt that asks for a plain value gets one, at the end of a sentence."""
    plain = {
        "mathvista-integer": "So the gap between them is 11.",
        "mathverse-free": "Add both.\nThe answer is $10\\sqrt{2}$.",
        "dynamath-float": "The period is two thirds of pi, 2.094.",
    }
    cases = [case for case in CASES if case.name in plain]
    items = []
    for case in cases:
        example = adapt(case.adapter, case.row, "rows:1", wording="own")
        meta = example.meta
        items.append(Item(meta["verifier"], plain[case.name], case.reference, "", meta["parameters"]))
    with VerifierClient(verifier.grpc) as client:
        assert [verdict.correct for verdict in client.verify(items)] == [True] * len(plain)


@pytest.mark.parametrize(
    ("adapter", "row", "message"),
    [
        ("mathvista", mathvista(question_type="free_form", answer_type="float", answer=""),
         r"rows:7: column 'answer' is '': the test split hides its answers"),
        ("mathvista", mathvista(question_type="multi_choice", answer_type="text", answer="x", choices=["y", "z"]),
         r"column 'answer' is 'x': give one of the choices \['y', 'z'\]"),
        ("mathverse", mathverse(image=""), r"column 'image' is '': give a picture"),
        ("mmmu_pro", mmmu_pro(options="[oops"), r"column 'options' is '\[oops': give a list of texts"),
        ("mmmu_pro", mmmu_pro(question="See <image 3>."), r"column 'image_3' is 'None': give a picture"),
        ("wemath", wemath(key="5steps_1"), r"column 'key' is '5steps_1': give 2steps_1"),
        ("dynamath", {"id": "1"}, r"column 'question' is missing: give text"),
        ("geometry3k", {"images": [stored()], "problem": "<image><image>?", "answer": "1"},
         "<image> stands in it 2 times, for 1 pictures"),
        ("geometry3k", {"images": "a.png", "problem": "?", "answer": "1"}, r"column 'images' is 'a.png': give a list"),
        ("geometry3k", {"images": ["no.png"], "problem": "?", "answer": "1"}, r"column 'images' is no picture"),
        ("mathvision", {"id": "1", "question": "?", "decoded_image": {"bytes": b"rubbish"}, "answer": "1"},
         r"column 'decoded_image' is no picture that can be read"),
        ("logicvista", {"question": "?", "answer": "", "image": PICTURE}, r"column 'answer' is '': give the letters"),
        ("math_vista", {}, r"data.adapter 'math_vista' is no adapter; did you mean 'mathvista'\?"),
    ],
)  # fmt: skip
def test_a_row_that_is_broken_is_named_with_a_remedy(adapter, row, message):
    with pytest.raises(UsageError, match=message):
        adapt(adapter, row, "rows:7")


NUMBERS = (0, -1, 10**400, 1.5, float("nan"), float("inf"), True, "1e999", "nan")
OTHERS = (None, "", "abc", "[1,", [], [None], ["a"] * 40, {}, {"a": None}, b"\xff", "\ud83d", "(" * 300, "[" * 5000)
VALUES = st.sampled_from((*NUMBERS, *OTHERS))


@given(case=st.sampled_from(CASES), data=st.data(), wording=st.sampled_from(["boxed", "own"]))
def test_a_value_of_any_type_is_an_example_or_an_error_of_its_row(case, data, wording):
    columns = data.draw(st.lists(st.sampled_from(sorted(case.row)), min_size=1, max_size=2, unique=True))
    row = {**case.row, **{column: data.draw(VALUES, column) for column in columns}}
    with contextlib.suppress(UsageError):
        adapt(case.adapter, row, "rows:1", wording=wording)


@pytest.mark.parametrize("precision", ["abc", "nan", "inf", -1, 400, "[1,"])
def test_a_precision_that_is_none_is_an_error_of_its_row(precision):
    row = next(c.row for c in CASES if c.adapter == "mathvista" and c.row["answer_type"] == "float")
    with pytest.raises(UsageError, match=r"rows:1: column 'precision' is .*: give the decimal places"):
        adapt("mathvista", {**row, "precision": precision}, "rows:1")


def test_what_is_transparent_is_white():
    buffer = io.BytesIO()
    Image.new("RGBA", (4, 4), (0, 0, 0, 0)).save(buffer, "PNG")
    example = adapt("geometry3k", {"images": [buffer.getvalue()], "problem": "?", "answer": "1"}, "rows:1")
    assert example.images[0].getpixel((0, 0)) == (255, 255, 255)


def outcomes(adapter, rows):
    return [Outcome(adapt(adapter, row, "rows:1"), correct) for row, correct in rows]


def test_dynamaths_worst_case():
    rows = [(dynamath(id=seed), correct) for seed, verdicts in (("1", [True] * 3), ("2", [True, False, True]))
            for correct in verdicts]  # fmt: skip
    metrics = REGISTRY["dynamath"].aggregate(outcomes("dynamath", rows))
    assert metrics == {"average": [1.0, pytest.approx(2 / 3)], "worst_case": [1.0, 0.0]}
    # A missing verdict is not a zero: seed 3 has no value, seed 4 is wrong whatever its missing verdict would be.
    rows += [(dynamath(id="3"), True), (dynamath(id="3"), None), (dynamath(id="4"), False), (dynamath(id="4"), None)]
    metrics = REGISTRY["dynamath"].aggregate(outcomes("dynamath", rows))
    assert metrics == {"average": [1.0, pytest.approx(2 / 3)], "worst_case": [1.0, 0.0, 0.0]}


def test_wemaths_four_outcomes():
    """One problem of each kind in both readings, against the definitions of section 3 of the paper."""
    steps = {
        "mastered": (True, True, True),
        "not generalized": (True, True, False),
        "not known": (True, False, False),
        "by rote in the strict reading": (True, False, True),
        "by rote": (False, False, True),
        "incomplete": (True, True),
        "unjudged": (True, True, None),
    }
    rows = [
        (wemath(ID=name, key=f"2steps_{key}"), correct)
        for name, verdicts in steps.items()
        for key, correct in zip(("1", "2", "multi"), verdicts, strict=False)
    ]
    metrics = REGISTRY["wemath"].aggregate(outcomes("wemath", rows))
    means = {name: sum(values) / len(values) for name, values in metrics.items()}
    assert {len(values) for name, values in metrics.items() if "rote" not in name} == {5}
    assert means == {
        "score_strict": pytest.approx((1 + 0.5) / 5),
        "score_loose": pytest.approx((2 + 0.5) / 5),
        "insufficient_knowledge": pytest.approx(1 / 5),
        "inadequate_generalization": pytest.approx(1 / 5),
        "complete_mastery_strict": pytest.approx(1 / 5),
        "complete_mastery_loose": pytest.approx(2 / 5),
        "rote_memorization_strict": pytest.approx(2 / 3),
        "rote_memorization_loose": pytest.approx(1 / 3),
    }
    # The published score: (N - IG / 2 - RM - IK) / N.
    assert means["score_strict"] == pytest.approx((5 - 0.5 - 2 - 1) / 5)
    assert means["score_loose"] == pytest.approx((5 - 0.5 - 1 - 1) / 5)


def test_mathverses_overall_figure_has_a_picture():
    rows = [(mathverse(), True), (mathverse(problem_version="Text Only", image=None), False), (mathverse(), None)]
    assert REGISTRY["mathverse"].aggregate(outcomes("mathverse", rows)) == {"with_picture": [1.0]}


def test_rows_come_from_parquet_as_the_hub_has_it(tmp_path):
    rows = [mathvista(pid=str(n), question_type="free_form", answer_type="integer", answer=str(n)) for n in range(5)]
    rows[3]["answer"] = ""
    for part in range(2):
        table = pyarrow.Table.from_pylist(rows[part * 3 : part * 3 + 3])
        pyarrow.parquet.write_table(table, tmp_path / f"testmini-{part}.parquet")
    config = DataConfig(source=str(tmp_path / "testmini-*.parquet"), adapter="mathvista", skip_broken=True)
    assert config.label == "mathvista"
    assert [example.id for example in load_examples(config)] == ["0", "1", "2", "4"]
    assert [e.id for e in load_examples(config.model_copy(update={"offset": 1, "limit": 2}))] == ["1", "2"]
    strict = config.model_copy(update={"skip_broken": False})
    with pytest.raises(UsageError, match=r"testmini-1\.parquet\S+ column 'answer' is ''.*skip_broken=true"):
        load_examples(strict)


def test_rows_come_from_jsonl_with_picture_files(tmp_path):
    PICTURE.save(tmp_path / "v1_0.png")
    row = {"imagename": "v1_0.png", "question": "Which? (A-D)", "answer": "C", "skill": ["spatial"]}
    (tmp_path / "rows.jsonl").write_text(json.dumps(row) + "\n{oops\n")
    config = DataConfig(source=str(tmp_path / "rows.jsonl"), adapter="logicvista", skip_broken=True)
    (example,) = load_examples(config)
    assert example.images[0].size == PICTURE.size
    for source, message in (("no.jsonl", "no.jsonl.* exists"), ("rows.txt", "neither JSONL.* nor Parquet")):
        (tmp_path / "rows.txt").touch()
        with pytest.raises(UsageError, match=message):
            load_examples(DataConfig(source=str(tmp_path / source), adapter="logicvista"))
    with pytest.raises(UsageError, match="is no adapter"):
        load_examples(DataConfig(source="x", adapter="nothing"))
