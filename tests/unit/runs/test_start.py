"""How a run begins in its folder: nothing is written over without being asked for."""

import sys

import pytest
from vold_trainer import cli
from vold_trainer.errors import UsageError
from vold_trainer.runs.start import Start, clear_run, holds_run, traces_are_complete


@pytest.mark.parametrize("left", ["config.yaml", "run.json", "metrics.jsonl", "checkpoints", "model", "best"])
def test_a_folder_that_holds_any_part_of_a_run_is_refused(left, tmp_path):
    Start().check(tmp_path)
    path = tmp_path / left
    path.write_text("") if "." in left else path.mkdir()
    assert holds_run(tmp_path)
    with pytest.raises(UsageError, match="holds a run: go on with it with --resume, delete it with --overwrite, or"):
        Start().check(tmp_path)
    Start(resume=True).check(tmp_path)
    Start(overwrite=True).check(tmp_path)


def test_options_that_contradict_each_other_are_refused(tmp_path):
    with pytest.raises(UsageError, match="--resume and --overwrite exclude each other"):
        Start(resume=True, overwrite=True).check(tmp_path)
    with pytest.raises(UsageError, match="--step 40 says from which checkpoint to go on: add --resume"):
        Start(step="40").check(tmp_path)


def test_only_what_runs_write_is_deleted(tmp_path):
    for name in ("run.json", "metrics.jsonl", "eval.json", "notes.md", "data.jsonl"):
        (tmp_path / name).write_text("{}")
    for name in ("checkpoints/step-000002", "model", "pictures"):
        (tmp_path / name).mkdir(parents=True)
    elsewhere = tmp_path / "pictures" / "kept"
    elsewhere.write_text("")
    (tmp_path / "best").symlink_to(tmp_path / "pictures")
    clear_run(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["data.jsonl", "notes.md", "pictures"]
    assert elsewhere.exists()


def test_traces_and_exports_are_not_replaced_in_silence(tmp_path, monkeypatch, capsys):
    (tmp_path / "traces.jsonl").write_text("what took a day")
    (tmp_path / "config.json").write_text("{}")
    for arguments in (["traces", "pocket:traces", f"out={tmp_path}/traces.jsonl"], ["export", "run", str(tmp_path)]):
        monkeypatch.setattr(sys, "argv", ["vold", *arguments])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        assert ended.value.code == 1
        assert "exists: replace it with --overwrite" in capsys.readouterr().err.replace("\n", "")
    assert (tmp_path / "traces.jsonl").read_text() == "what took a day"


def test_traces_that_are_there_are_never_lost_by_mistake(tmp_path):
    out, unfinished = tmp_path / "t.jsonl", tmp_path / "t.jsonl.partial"
    assert not traces_are_complete(out, resume=False, overwrite=False)
    assert not traces_are_complete(out, resume=True, overwrite=False)  # nothing there: it begins
    unfinished.touch()
    with pytest.raises(UsageError, match=r"t\.jsonl\.partial' holds unfinished traces: go on with --resume"):
        traces_are_complete(out, resume=False, overwrite=False)
    assert not traces_are_complete(out, resume=True, overwrite=False)
    assert not traces_are_complete(out, resume=False, overwrite=True)
    out.touch()
    assert not traces_are_complete(out, resume=True, overwrite=False)  # killed between the end and the tidying up
    unfinished.unlink()
    assert traces_are_complete(out, resume=True, overwrite=False)
    with pytest.raises(UsageError, match="exists: replace it with --overwrite"):
        traces_are_complete(out, resume=False, overwrite=False)
    with pytest.raises(UsageError, match="exclude each other"):
        traces_are_complete(out, resume=True, overwrite=True)
