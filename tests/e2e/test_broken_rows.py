"""Rows at fault in the middle of a run: their groups are missing, and nothing else changes."""

import base64
import json
import shutil
import sys
from pathlib import Path

import programs
import pytest
from paths import HELPERS
from servers import serving
from vold_client import AsyncVerifierClient
from vold_trainer.coldstart.sft import run_sft
from vold_trainer.coldstart.traces import run_traces
from vold_trainer.config import EvalConfig, SftConfig, TracesConfig, TrainConfig, load
from vold_trainer.data import Example
from vold_trainer.errors import RunError, UsageError
from vold_trainer.evaluation import run_eval
from vold_trainer.files import read_json_lines
from vold_trainer.objectives import Needs
from vold_trainer.pocket.shipped import checkpoint_path
from vold_trainer.pocket.world import make_examples
from vold_trainer.rollout.base import Rollout
from vold_trainer.scoring.scorer import Scorer
from vold_trainer.scoring.scores import StepScores
from vold_trainer.training import loop
from vold_trainer.training.generation import RolloutGenerator
from vold_trainer.training.train import run_train

GROUP = 2
SMALL = (
    *("student.path=pocket:student", f"rollout.group={GROUP}", "rollout.prompts=2", "rollout.max_tokens=16"),
    *("steps=4", "threads=1", "batch.micro=3", "missing.max_share=0.5"),
    # So small that the weights stay as they are: a group that is missing changes them.
    *("optim.lr=1e-12", "optim.warmup_steps=0", "diagnostics.every=2", "diagnostics.rollouts=4"),
)
BROKEN = 2
"""The row of the file whose picture is broken, from 0."""


def write_rows(folder: Path, *, broken: bool = True, count: int = 4, **changes) -> Path:
    """Pocket problems as JSONL with pictures. broken: the pixels of one picture are not there, though its header is."""
    (folder / "pictures").mkdir(parents=True)
    rows = []
    for index, example in enumerate(make_examples("train", count, modality="twin")):
        picture = folder / "pictures" / f"{index}.jpg"
        example.images[0].save(picture, quality=95)
        rows.append(
            {
                "id": f"q{index}",
                "prompt": example.messages[0]["content"][1]["text"],
                "twin": example.twin[0]["content"],
                "image": f"pictures/{index}.jpg",
                "reference": example.reference,
            }
        )
    rows[BROKEN] |= changes
    if broken:
        picture = folder / "pictures" / f"{BROKEN}.jpg"
        data = picture.read_bytes()
        picture.write_bytes(data[: len(data) // 2])
    file = folder / "rows.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


@pytest.fixture
def train(pocket_teacher, verifier):
    """Runs `vold train` on a file."""

    def run(out: Path, file: Path, *overrides: str, resume: bool = False) -> list[dict]:
        urls = [f"teacher.url={pocket_teacher.grpc}", f"verifier.url={verifier.grpc}"]
        data = f"data={{source: {file}}}"
        run_train(
            load(TrainConfig, Path("pocket:vold"), [f"out={out}", *urls, *SMALL, data, *overrides]), resume=resume
        )
        return read_json_lines(out / "metrics.jsonl")

    return run


@pytest.fixture
def generated(monkeypatch):
    """The batches that runs generate."""
    batches = []
    generate = RolloutGenerator.generate

    def recording(self, *arguments):
        batches.append(generate(self, *arguments))
        return batches[-1]

    monkeypatch.setattr(RolloutGenerator, "generate", recording)
    return batches


def before_step(monkeypatch, number: int, action) -> None:
    """Call `action` when step `number`, counted from 0, begins."""
    step = loop.Loop._step

    def acting(self, current):
        if current == number:
            action()
        return step(self, current)

    monkeypatch.setattr(loop.Loop, "_step", acting)


def messages(caplog) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.name == "vold.rows"]


def completions(batches) -> dict[tuple[int, int], tuple[str, tuple[int, ...]]]:
    return {(batch.step, r.row): (r.example.id, r.ids) for batch in batches for r in batch.scored.rollouts}


@pytest.mark.slow
def test_a_broken_picture_costs_its_own_group_alone(tmp_path, train, generated, caplog):
    train(tmp_path / "whole", write_rows(tmp_path / "good", broken=False))
    whole = completions(generated)
    generated.clear()
    rows = train(tmp_path / "run", write_rows(tmp_path / "bad", broken=True))
    assert completions(generated) == {key: value for key, value in whole.items() if value[0] != f"q{BROKEN}"}
    assert len(whole) - len(completions(generated)) == 2 * GROUP  # it comes in both epochs
    assert [row["missing/rows"] for row in rows].count(1.0) == 2
    assert [row["missing/rows"] for row in rows].count(0.0) == 2
    assert all(row["missing/teacher"] == row["missing/verifier"] == 0 for row in rows)
    assert all(row["loss"] is not None for row in rows)
    assert ["overlap/ratio" in row for row in rows] == [True, True, False, True]
    (said,) = messages(caplog)
    assert f"rows.jsonl:{BROKEN + 1}: row 'q{BROKEN}': image" in said


def test_a_batch_that_a_checkpoint_holds_lacks_the_same_group(tmp_path, train):
    file, out = write_rows(tmp_path), tmp_path / "run"
    ahead = ("rollout.ahead=1", "diagnostics.every=0")
    rows = train(out, file, *ahead, "checkpoints.every=1", "checkpoints.keep_last=9")
    faulty = next(row["step"] for row in rows[1:] if row["missing/rows"])
    for step in range(faulty, 5):  # the checkpoint before it holds its batch
        shutil.rmtree(out / "checkpoints" / f"step-{step:06d}")
    resumed = train(out, file, *ahead, resume=True)
    for row, other in zip(rows, resumed, strict=True):
        for key in ("loss", "reward/mean", "teacher/k2", "length/mean", "missing/rows", "staleness"):
            assert row[key] == pytest.approx(other[key], rel=1e-5, abs=1e-6), (row["step"], key)


def test_the_config_may_say_that_a_broken_row_stops_the_run(tmp_path, train):
    message = (
        rf"rows\.jsonl:{BROKEN + 1}: row 'q{BROKEN}': image .* cannot be read: .*Mend the row, or set "
        r"data\.skip_broken=true.*step \d is saved"
    )
    file, out = write_rows(tmp_path), tmp_path / "run"
    with pytest.raises(RunError, match=message) as raised:
        train(out, file, "data.skip_broken=false")
    assert str(raised.value).count("Mend the row") == 1
    assert len(list((out / "checkpoints").glob("step-*"))) == 1


def test_pictures_that_vanish_cost_their_groups_and_past_the_limit_stop_the_run(
    tmp_path, train, generated, monkeypatch, caplog
):
    """One goes between its completions and the update, which has it still; all go before the next step: no weight
    changes any more.
    """
    file, out = write_rows(tmp_path, broken=False), tmp_path / "run"
    generate = RolloutGenerator.generate

    def removing(self, step, examples):
        batch = generate(self, step, examples)
        if step == 0:
            examples[1].images.lazy_images[0].path.unlink()
        return batch

    monkeypatch.setattr(RolloutGenerator, "generate", removing)
    before_step(monkeypatch, 1, lambda: shutil.rmtree(tmp_path / "pictures"))
    with pytest.raises(RunError, match=r"100% of the scores were missing for 2 steps in a row.*mend .*rows\.jsonl:\d"):
        train(out, file, "missing.patience=2", "optim.lr=1e-3")
    rows = read_json_lines(out / "metrics.jsonl")
    assert [row["missing/rows"] for row in rows] == [0, 2, 2]
    assert [len(batch.scored.rollouts) for batch in generated] == [2 * GROUP, 0, 0]
    assert [row.get("loss") is None for row in rows] == [False, True, True]
    assert all(row["lr"] > 0 for row in rows)
    said = [message.partition("rows.jsonl:")[2].partition(" ")[0] for message in messages(caplog)]
    assert len(said) == len(set(said)) > 2
    assert (out / "checkpoints" / "step-000003").is_dir()


def test_a_twin_and_a_reference_that_are_too_long_for_the_services(tmp_path, train, caplog):
    file = write_rows(tmp_path, broken=False, twin="3 + " * 3000, reference="1" * 70_000)
    rows = train(tmp_path / "run", file, "steps=2")
    assert sum(row["missing/verifier"] for row in rows) == sum(row["missing/teacher"] for row in rows) == GROUP
    assert sum(row["missing/rows"] for row in rows) == 1
    assert f"rows.jsonl:{BROKEN + 1}: row 'q{BROKEN}': " in messages(caplog)[0]


def test_a_request_that_is_refused_for_one_row_loses_no_score_of_another(verifier):
    """Half of a character cannot be sent: the client refuses all that is in one request with it."""

    def rollouts(row: int, reference: str) -> list[Rollout]:
        example = Example(f"q{row}", ({"role": "user", "content": "1+1?"},), reference)
        return [Rollout(2 * row + n, example, (1,), (2,), "\\boxed{2}", False) for n in range(2)]

    def score(**options) -> StepScores:
        scorer = Scorer(
            make_teachers=dict, make_verifier=lambda: AsyncVerifierClient(verifier.grpc), route=str, **options
        )
        try:
            pending = scorer.begin(Needs(reward=True))
            pending.submit([r for row, text in enumerate(["2", "2", "\ud83d", "3", "2"]) for r in rollouts(row, text)])
            pending.flush()
            return pending.collect()
        finally:
            scorer.close()

    scores = score()
    assert [scores.rows[2 * row].correct for row in range(5)] == [True, True, None, False, True]
    assert scores.missing == {"verifier: InvalidArgument": 2}
    (fault,) = scores.faults
    assert (fault.id, fault.kind) == ("q2", "refused")
    with pytest.raises(RunError, match=r"row 'q2': .*cannot be sent.*Mend the row, or set data\.skip_broken"):
        score(stop_at_faults=True)


@pytest.mark.parametrize("objective", ["{name: dapo, rounds: 2}", "{name: opd}", "{name: grpo}"])
@pytest.mark.slow
def test_every_kind_of_objective_goes_on(objective, tmp_path, train):
    """With one row a step: the steps of the broken one have no completion at all."""
    rows = train(tmp_path / "run", write_rows(tmp_path), f"objective={objective}", "rollout.prompts=1", "steps=4")
    assert sum(row["missing/rows"] for row in rows) >= 1
    assert any(row.get("loss") is None for row in rows) or "dapo" in objective  # its second round has another row


def test_rows_longer_than_the_student_are_told_before_the_first_step(tmp_path, train, caplog):
    """The pocket student has 512 positions."""
    rows = [{"id": str(number), "prompt": "1 + 1 = ?", "reference": "2"} for number in range(4)]
    rows[BROKEN]["prompt"] = "1 + 1 = ? " * 150
    file = tmp_path / "rows.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    overrides = ("objective.name=grpo", "teacher=null", "steps=2", "diagnostics.every=0")
    said = (
        rf"{file}:3: row '2': its prompt has [\d,]+ tokens, and with rollout\.max_tokens 16 that is more than the 512"
    )
    with pytest.raises(UsageError, match=said):
        train(tmp_path / "stopped", file, *overrides)
    assert not read_json_lines(tmp_path / "stopped" / "metrics.jsonl")
    metrics = train(tmp_path / "run", file, *overrides, "data.skip_broken=true")
    assert sum(row["missing/rows"] for row in metrics) == 1
    (line,) = messages(caplog)
    assert "rows.jsonl:3: row '2': its prompt has" in line


def write_traces(folder: Path) -> Path:
    rows = [json.loads(line) for line in write_rows(folder).read_text().splitlines()]
    file = folder / "traces.jsonl"
    file.write_text("".join(json.dumps(row | {"completion": f"\\boxed{{{row['reference']}}}"}) + "\n" for row in rows))
    return file


@pytest.mark.slow
def test_traces_at_fault_are_left_out(tmp_path, train, caplog):
    traces = write_traces(tmp_path)
    settings = [f"traces={traces}", "steps=4", "batch=2", "micro=3", "threads=1", "missing.max_share=0.5"]

    def sft(out: str, *overrides: str) -> list[dict]:
        run_sft(load(SftConfig, Path("pocket:sft"), [f"out={tmp_path / out}", *settings, *overrides]))
        return read_json_lines(tmp_path / out / "metrics.jsonl")

    rows = sft("sft")
    assert [row["missing/rows"] for row in rows].count(1.0) == 2
    assert all(row["loss"] > 0 for row in rows)
    assert [f"traces.jsonl:{BROKEN + 1}: row 'q{BROKEN}': image" in said for said in messages(caplog)] == [True]
    with pytest.raises(RunError, match=rf"traces\.jsonl:{BROKEN + 1}: .*Mend the row, or set skip_broken=true"):
        sft("stopped", "skip_broken=false")
    with pytest.raises(RunError, match=r"50% of the traces of a step could not be read, such as .*traces\.jsonl:3"):
        sft("limited", "missing.max_share=0.2", "missing.patience=1")
    caplog.clear()
    gkd = f"objective={{name: gkd, traces: {traces}, student_share: 0.0}}"
    rows = train(tmp_path / "gkd", traces.with_name("rows.jsonl"), gkd, "rollout.prompts=1")
    assert [row["missing/rows"] for row in rows].count(1.0) == 2
    assert [f"traces.jsonl:{BROKEN + 1}: row 'q{BROKEN}': image" in said for said in messages(caplog)] == [True]


@pytest.mark.slow
def test_a_picture_that_cannot_be_written_beside_the_traces_costs_its_trace(tmp_path, pocket_teacher, caplog):
    """The teacher reads the twin, so nothing decodes the picture before."""
    file = write_rows(tmp_path)
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    for row in rows:
        row["image"] = f"data:image/jpeg;base64,{base64.b64encode((tmp_path / row['image']).read_bytes()).decode()}"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    urls = [f"teacher.url={pocket_teacher.grpc}", "verifier=null", "keep=all"]
    settings = [f"out={tmp_path / 'traces.jsonl'}", *urls, f"data={{source: {file}}}"]
    summary = run_traces(load(TracesConfig, Path("pocket:traces"), settings))
    assert (summary.written, summary.dropped) == (3, {"row: unreadable": 1})
    assert len(read_json_lines(tmp_path / "traces.jsonl")) == 3
    (said,) = [record.getMessage() for record in caplog.records if record.name == "vold.traces"]
    assert f"rows.jsonl:{BROKEN + 1}: row 'q{BROKEN}': image" in said
    with pytest.raises(RunError, match=rf"rows\.jsonl:{BROKEN + 1}: "):
        run_traces(load(TracesConfig, Path("pocket:traces"), [*settings, "data.skip_broken=false"]))


def test_a_problem_at_fault_is_in_no_metric_of_an_evaluation(tmp_path, verifier, caplog):
    def evaluate(name: str, file: Path, *overrides: str):
        sets = f"data=[{{name: rows, source: {file}}}]"
        settings = [f"out={tmp_path / name}", f"verifier.url={verifier.grpc}", "sampling.n=2", "batch=12", sets]
        result = run_eval(load(EvalConfig, Path("pocket:eval"), [*settings, *overrides]))["rows"]
        answers = read_json_lines(tmp_path / name / "answers.jsonl")[1:]
        return result, {(row["key"], row["sample"]): row["completion"] for row in answers}

    _, whole = evaluate("whole", write_rows(tmp_path / "good", broken=False))
    file = write_rows(tmp_path / "bad")
    result, answers = evaluate("eval", file)
    assert answers == {key: value for key, value in whole.items() if key[0] != f"q{BROKEN}"}
    assert (result.problems, result.n, result.errors) == (4, 3, 3)
    assert len(messages(caplog)) == 1
    with pytest.raises(RunError, match=rf"rows\.jsonl:{BROKEN + 1}: "):
        evaluate("stopped", file, "data.0.skip_broken=false")


@pytest.mark.slow
def test_a_row_that_a_teachers_template_refuses_is_found_before_the_run(tmp_path, train, generated):
    """And is a missing group in it if the config says so."""
    model = shutil.copytree(checkpoint_path("teacher"), tmp_path / "teacher")
    template = model / "chat_template.jinja"
    refusing = "{% if 'no sevens' in messages[0].content %}{{ raise_exception('as I said') }}{% endif %}"
    template.write_text(refusing + template.read_text())
    file = write_rows(tmp_path, broken=False, twin="no sevens: 3 + 3")
    with serving("teacher", "--model", str(model)) as server:
        options = ("teacher.template=teacher", f"teacher.url={server.grpc}")
        with pytest.raises(UsageError, match=rf"rows\.jsonl:{BROKEN + 1}: row 'q{BROKEN}': .*refuses it: as I said"):
            train(tmp_path / "run", file, *options)
        assert not generated
        rows = train(tmp_path / "skipped", file, *options, "data.skip_broken=true", "steps=2")
    assert sum(row["missing/rows"] for row in rows) == 1
    assert sum(len(batch.scored.rollouts) for batch in generated) == 3 * GROUP
    assert all(row["missing/teacher"] == 0 for row in rows)


@pytest.mark.slow
def test_two_processes_go_on_where_the_rows_of_one_are_at_fault(tmp_path, train, pocket_teacher, verifier):
    """Two rows a step, one for each process, and the same numbers as in one process."""
    file = write_rows(tmp_path)
    pair = ("rollout.prompts=2", "optim.lr=1e-4", "steps=3")
    names = {"vold": "{name: vold}", "dapo": "{name: dapo, rounds: 2}"}
    urls = [f"teacher.url={pocket_teacher.grpc}", f"verifier.url={verifier.grpc}"]
    runs = [
        [
            "train",
            str(tmp_path / f"two-{name}"),
            [*urls, *SMALL, f"data={{source: {file}}}", *pair, f"objective={text}"],
        ]
        for name, text in names.items()
    ]
    (tmp_path / "runs.json").write_text(json.dumps(runs))
    done = programs.run([sys.executable, str(HELPERS / "launched_runs.py"), "runs", str(tmp_path / "runs.json")])
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("goes on without a row at fault") == len(names)  # whichever process had it
    for name, text in names.items():
        alone = train(tmp_path / name, file, *pair, f"objective={text}")
        both = read_json_lines(tmp_path / f"two-{name}" / "metrics.jsonl")
        assert sum(row["missing/rows"] for row in alone) >= 1
        for row, other in zip(alone, both, strict=True):
            for key in ("loss", "reward/mean", "teacher/k2", "missing/rows", "length/mean", "grad_norm"):
                same = None if other.get(key) is None else pytest.approx(other[key], rel=1e-5, abs=1e-6)
                assert row.get(key) == same, (row["step"], key)
