"""The report as a file: complete, self-contained, tolerant of unfinished runs and safe with hostile text."""

import json
import random
import re
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree

import pytest
from plotly.offline import get_plotlyjs
from report_runs import HOSTILE, ablation, picture, rollout, summary, write_lines, write_run
from vold_trainer.report import build_report, write_ablation

VOID = {"meta", "img", "br", "link", "input"}


class Parsed(HTMLParser):
    """Tags with their attributes, text outside scripts, and the figures; fails on a tag closed out of order."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.figures: list[dict] = []
        self.scripts = 0
        self._open: list[str] = []
        self._json = False
        self.feed(path.read_text("utf-8"))
        self.close()
        assert not self._open

    def handle_starttag(self, tag, attrs):
        attributes = dict(attrs)
        self.tags.append((tag, attributes))
        if tag not in VOID:
            self._open.append(tag)
        if tag == "script":
            self._json = attributes.get("type") == "application/json"
            self.scripts += not self._json

    def handle_endtag(self, tag):
        assert self._open.pop() == tag

    def handle_data(self, data):
        if self._open and self._open[-1] == "script":
            if self._json:
                self.figures.append(json.loads(data))
        elif self._open and self._open[-1] != "style":
            self.text += data


@pytest.fixture
def two_runs(tmp_path):
    return [
        write_run(tmp_path / "grpo", "grpo", steps=24),
        write_run(tmp_path / "vold", "vold", steps=24, missing=True),
    ]


def test_the_page_holds_the_values_and_loads_nothing(two_runs, tmp_path):
    out = tmp_path / "new" / "report.html"
    assert build_report(two_runs, out, title="Two runs", summary=summary(), ablation=ablation()) == out
    page = Parsed(out)
    assert page.text.count("Two runs") == 2
    for expected in ("12.4 %", "60.8 %", "+48.4", "56.4 to 64.9 %", "7 min 12 s", "pocket-teacher", "VOLD unmasked"):
        assert expected in page.text
    assert "missing scores of the teacher: 1" in page.text
    assert {"Loss", "verifier/queue_depth"} <= {attributes.get("aria-label") for _, attributes in page.tags}
    for _, attributes in page.tags:
        for name in ("src", "href", "srcset", "action", "data"):
            assert re.match(r"data:image/png;base64,|#", attributes.get(name) or "#"), (name, attributes[name])
    assert not re.search(r"@import|url\(", re.search(r"<style>.*?</style>", out.read_text(), re.DOTALL)[0])
    policy = next(a["content"] for t, a in page.tags if a.get("http-equiv") == "Content-Security-Policy")
    assert policy.startswith("default-src 'none'")
    assert "http" not in policy
    assert page.scripts == policy.count("sha256-") == 2


def test_the_page_is_a_few_hundred_kilobytes_larger_than_plotly(two_runs, tmp_path):
    text = build_report(two_runs, tmp_path / "r.html", title="t").read_text()
    assert text.count(get_plotlyjs()[:200]) == 1
    assert len(text) - len(get_plotlyjs()) < 600_000


def test_runs_are_overlaid_under_their_names(two_runs, tmp_path):
    page = Parsed(build_report(two_runs, tmp_path / "r.html", title="t"))
    names = {trace.get("name") for figure in page.figures for trace in figure["data"]}
    assert {"grpo", "vold", "grpo · right", "vold · wrong"} <= names


def test_hostile_text_is_escaped(tmp_path):
    run = write_run(tmp_path / "<img src=x onerror=1>", "vold", steps=3)
    row = {"step": 1, HOSTILE: 1.0, f"{HOSTILE}/x": 2.0}
    write_lines(run / "metrics.jsonl", [row, {**row, "step": 2}])
    (run / "run.json").write_text(json.dumps({"kind": HOSTILE, "teacher": {HOSTILE: HOSTILE}, "student": "\ud800"}))
    write_lines(
        run / "rollouts.jsonl",
        [
            {
                "step": 1, "id": HOSTILE, "prompt": HOSTILE, "reference": HOSTILE,
                "tokens": [HOSTILE, "\x00\u202e\ud800"],
                "student_logprobs": [-1, -2], "teacher_logprobs": [None, -3], "reward": 0, "correct": False,
                "extracted": HOSTILE, "reason": HOSTILE,
            }
        ],
    )  # fmt: skip
    sample = {"modality": HOSTILE, "id": HOSTILE, "prompt": HOSTILE, "completion": HOSTILE, "correct": True}
    images = ["http://evil.invalid/a.png", "data:image/svg+xml;base64,AAAA", 'data:image/png;base64,AA" onload="x', 7]
    write_lines(run / "eval_samples.jsonl", [{**sample, "image": image} for image in [*images, picture("7")]])
    page = Parsed(
        build_report(
            [run],
            tmp_path / "r.html",
            title=HOSTILE,
            summary={"stages": {HOSTILE: {"image_accuracy": 0.5, "text_accuracy": None, "n": 4}}, "teacher": {}},
            ablation={"rows": [{"name": "x", "label": HOSTILE, "seeds": [{"seed": 0, "image_accuracy": 0.1}]}]},
        )
    )
    assert page.scripts == 2
    assert [a["src"] for tag, a in page.tags if tag == "img"] == [picture("7")]
    assert not [a for _, a in page.tags if any(name.startswith("on") for name in a)]
    assert "␀⟨U+202E⟩" in page.text
    assert HOSTILE in page.text
    for figure in page.figures:  # plotly interprets tags in names
        assert not [trace for trace in figure["data"] if "<img" in str(trace.get("name"))]


def test_a_run_that_has_just_started(tmp_path):
    (tmp_path / "empty").mkdir()
    page = Parsed(build_report([tmp_path / "empty"], tmp_path / "r.html", title="t"))
    assert "empty (0 steps)" in page.text
    assert "No run.json yet" in page.text
    assert not page.figures


def test_an_sft_run_and_no_run(tmp_path):
    run = tmp_path / "sft"
    run.mkdir()
    (run / "run.json").write_text('{"kind": "sft", "steps": 250, "seed": 1}')
    write_lines(run / "metrics.jsonl", [{"step": 1, "loss": 2.5, "lr": None}])
    page = Parsed(build_report([run], tmp_path / "r.html", title="t"))
    assert "1 of 250 steps" in page.text
    assert [figure["data"][1]["y"] for figure in page.figures] == [[2.5]]
    assert "No run folder was given" in Parsed(build_report([], tmp_path / "none.html", title="t")).text


def test_an_incomplete_last_line_is_ignored_and_a_broken_line_is_reported(tmp_path):
    run = write_run(tmp_path / "vold", "vold", steps=4)
    with (run / "metrics.jsonl").open("a") as file:
        file.write('not json\n[1]\n{"step": 5, "loss": NaN}\n{"step": 6, "lo')
    with (run / "rollouts.jsonl").open("a") as file:
        file.write(json.dumps({"step": 4, "tokens": ["a"]})[:-3])
    page = Parsed(build_report([run], tmp_path / "r.html", title="t"))
    assert "metrics.jsonl: 2 lines left out, the first at line 5" in page.text
    assert "rollouts.jsonl" not in page.text
    assert "5 steps" in page.text


def test_a_missing_folder_is_an_error(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere"):
        build_report([tmp_path / "nowhere"], tmp_path / "r.html", title="t")


def test_secrets_of_the_configuration_are_removed(tmp_path):
    run = write_run(tmp_path / "vold", "vold", steps=2)
    (run / "config.yaml").write_text("teacher: {api_key: sk-secret, url: 'grpc://me:hidden@host:1'}\nmax_tokens: 128\n")
    text = build_report([run], tmp_path / "r.html", title="t").read_text()
    assert "sk-secret" not in text
    assert "hidden@" not in text
    assert "max_tokens: 128" in text
    assert "@host:1" in text


def test_different_teachers_are_a_warning(two_runs, tmp_path):
    meta = json.loads((two_runs[0] / "run.json").read_text())
    meta["teacher"]["weights_fingerprint"] = "another"
    (two_runs[0] / "run.json").write_text(json.dumps(meta))
    assert "different teachers" in Parsed(build_report(two_runs, tmp_path / "r.html", title="t")).text


def test_a_long_completion_shows_its_start_and_its_end(tmp_path):
    run = write_run(tmp_path / "vold", "vold", steps=2)
    row = rollout(random.Random(0), 1, 0, 0.5, False)
    row |= {
        "tokens": [f"<{i}>" for i in range(5000)],
        "student_logprobs": [-1.0] * 5000,
        "teacher_logprobs": [-2.0] * 5000,
    }
    write_lines(run / "rollouts.jsonl", [row])
    text = Parsed(build_report([run], tmp_path / "r.html", title="t")).text
    assert "<0>" in text
    assert "<4999>" in text
    assert "3,800 tokens not shown" in text


def test_ablation_files(tmp_path):
    result = ablation()
    result["rows"].append({"name": "new", "label": "a | b <c>", "seeds": [{"seed": 5, "image_accuracy": None}]})
    table, plot = write_ablation(result, tmp_path / "out")
    lines = table.read_text().splitlines()
    assert len(lines) == 2 + len(result["rows"])
    assert len({len(re.findall(r"(?<!\\)\|", line)) for line in lines}) == 1
    assert re.search(r"\| VOLD \| 56\.8 ± 2\.8 \| 54\.0 ± 0\.0 \| – \| – \| 0 to 2 \|", table.read_text())
    svg = ElementTree.parse(plot).getroot()
    circles = [e for e in svg.iter() if e.tag.endswith("circle") and e.get("cy") != "20"]
    assert len(circles) == 7 * 3 * 2
    with pytest.raises(ValueError, match="no rows"):
        write_ablation({"rows": []}, tmp_path)


def test_why_scores_are_missing_and_what_a_teacher_should_not_answer_is_read_first(tmp_path):
    run = write_run(tmp_path / "vold", "vold", steps=4, missing=True)
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    rows[1] |= {"missing/teacher": 2.0, "missing/reasons": [f"2 teacher: Internal (row 'a': {HOSTILE})"]}
    rows[2] |= {"sane/alarms": 1.0, "sane/reasons": ["teacher (x) [equal]: 100.0% of 64 positions"]}
    (run / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    samples = [json.loads(line) for line in (run / "rollouts.jsonl").read_text().splitlines()]
    samples = [{**sample, "missing": {"teacher": f"INTERNAL: {HOSTILE}"}} for sample in samples]
    (run / "rollouts.jsonl").write_text("".join(json.dumps(sample) + "\n" for sample in samples))
    evaluation = json.loads((run / "eval.json").read_text())
    evaluation["text"] |= {"reasons": ["1 DeadlineExceeded (row 'b': too slow)"]}
    (run / "eval.json").write_text(json.dumps({**evaluation, "errors": 1}))
    page = Parsed(build_report([run], tmp_path / "r.html", title="t"))
    assert f"the last of them: 2 teacher: Internal (row 'a': {HOSTILE})" in page.text
    assert "alarms about what the teacher answers: 1" in page.text
    assert "the last of them: teacher (x) [equal]: 100.0% of 64 positions" in page.text
    assert "1 DeadlineExceeded (row 'b': too slow)" in page.text
    assert f"no score of the teacher: INTERNAL: {HOSTILE}" in page.text
    assert "Alarms about the teacher" in page.text


def test_sentences_that_are_none_break_no_page(tmp_path):
    run = write_run(tmp_path / "vold", "vold", steps=1)
    row = json.loads((run / "metrics.jsonl").read_text()) | {"missing/reasons": 3, "sane/reasons": [None, {}]}
    (run / "metrics.jsonl").write_text(json.dumps(row) + "\n")
    sample = json.loads((run / "rollouts.jsonl").read_text().splitlines()[0]) | {"missing": ["x"]}
    (run / "rollouts.jsonl").write_text(json.dumps(sample) + "\n")
    evaluation = json.loads((run / "eval.json").read_text())
    evaluation["text"] |= {"reasons": {"a": 1}}
    (run / "eval.json").write_text(json.dumps(evaluation))
    build_report([run], tmp_path / "r.html", title="t")
