"""A corrupted file ends no command with a traceback: it is an error for the user, or the rows that other libraries read
in the same bytes.
"""

import contextlib
import io
import json
import re
import warnings
from pathlib import Path

import pytest
import typer
from corrupted_files import Unreadable, corrupted_files, json_lines, pixels, rows_of
from transformers import AutoTokenizer
from vold_client import VoldError
from vold_trainer import cli, terminal
from vold_trainer.errors import VoldTrainerError
from vold_trainer.pocket.shipped import checkpoint_path
from vold_trainer.preparation.cli import app as prepare_app
from written_rows import encoded, is_whole, lines, prompts, traces

FILES, TOGETHER = 500, 20
LAYOUTS = ("orz57k", "mixture-of-thoughts", "geometry3k")
pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800), pytest.mark.filterwarnings("ignore::UserWarning:PIL")]


def commands(file: Path, out: Path, teacher: str, verifier: str, *, skip: bool):
    """The words of every command that reads rows of a file, by its name. skip: broken rows are left out."""
    services = [f"teacher.url={teacher}", f"verifier.url={verifier}"]
    broken = f"skip_broken={'true' if skip else 'null'}"
    data = [f"data.source={file}", "data.limit=null", "data.offset=0", f"data.{broken}"]
    small = ["steps=1", "rollout={prompts: 2, group: 2, max_tokens: 12}", "threads=1", "student.path=pocket:student"]
    yield "traces", ["traces", "pocket:traces", f"out={out}/traces.jsonl", *services, *data, "keep=all"]
    yield "train", ["train", "pocket:vold", f"out={out}/train", *services, *data, *small]
    one_set = f"data=[{{source: '{file}', check_images: pixels, {broken.replace('=', ': ')}}}]"
    yield "eval", ["eval", "pocket:eval", f"out={out}/eval", services[1], one_set, "max_tokens=12"]
    yield "check", ["check", "pocket:vold", *services, *data, *small, f"out={out}/check", "--no-dry"]
    layout = LAYOUTS[int(file.parent.name) % len(LAYOUTS)]
    yield "prepare", ["prepare", layout, str(file), "--out", f"{out}/prepared.jsonl"]
    if file.is_file():
        sft = ["sft", "pocket:sft", "batch=1", "steps=1", "threads=1"]
        yield "sft", [*sft, f"traces={file}", f"out={out}/sft", broken]
        yield "verify", ["verify", str(file), "--url", verifier, "--out", f"{out}/verdicts.jsonl"]


def run(words: list[str]) -> tuple[str, str]:
    """(what the command says where it ends with an error for the user, "" if it succeeds; what it prints). Raises any
    other error.
    """
    with contextlib.redirect_stdout(io.StringIO()) as printed, contextlib.redirect_stderr(io.StringIO()):
        said = ""
        try:
            cli.app(words, standalone_mode=False)
        except (VoldTrainerError, VoldError) as error:
            said = str(error)
            assert said
        except typer.Exit as ended:
            assert words[0] in ("check", "verify")
            said = "ended" if ended.exit_code else ""
    return said, printed.getvalue()


def each_is_a_row(written, rows):
    assert all(any(one.is_of(row) for row in rows) for one in written)


def none_is_lost(written, rows, *, skip: bool):
    """All rows are written, or with skip all those that nothing is wrong with."""
    asked = [row for row in rows if is_whole(row)] if skip else rows
    assert all(any(one.is_of(row) for one in written) for row in asked)
    assert skip or len(written) == len(rows)


def check_traces(file, out, said, printed, rows, skip):
    written = traces(out / "traces.jsonl")
    each_is_a_row(written, rows)
    if "dropped: none" in printed:
        none_is_lost(written, rows, skip=skip)


def check_train(file, out, said, printed, rows, skip):
    each_is_a_row(prompts(out / "train" / "rollouts.jsonl"), rows)


def check_eval(file, out, said, printed, rows, skip):
    """The file of samples holds a few of a set, and their number all."""
    written = prompts(out / "eval" / "eval_samples.jsonl")
    each_is_a_row(written, rows)
    if not said:
        sets = json.loads((out / "eval" / "eval.json").read_text())
        result = sets[file.path.stem]
        number = result["n"] + result["errors"]
        assert sum(map(is_whole, rows)) <= number <= len(rows)
        assert skip or number == len(rows)
        if file.kind == "picture" and written:
            pixels(file.path.with_name("picture"))


def check_check(file, out, said, printed, rows, skip):
    if count := re.search(r"([\d,]+) prompts from", printed):
        number = int(count[1].replace(",", ""))
        assert sum(map(is_whole, rows)) <= number <= len(rows)
        assert skip or number == len(rows)


def check_prepare(file, out, said, printed, rows, skip):
    """None of the files is of a published data set."""
    assert said
    assert not (out / "prepared.jsonl").exists()


def check_sft(file, out, said, printed, rows, skip):
    if not said:
        written = encoded(file.path, AutoTokenizer.from_pretrained(checkpoint_path("student")))
        each_is_a_row(written, rows)
        none_is_lost(written, rows, skip=skip)


def check_verify(file, out, said, printed, rows, skip):
    verdicts = lines(out / "verdicts.jsonl")
    rows = json_lines(file.path)
    if said in ("", "ended"):
        assert len(verdicts) == len(rows)
    for verdict, row in zip(verdicts, rows, strict=False):
        assert not is_whole(row) or verdict["error"] is None
        if verdict["error"] is None:
            assert verdict["id"] == row.get("id", verdict["id"])
            if answer := re.fullmatch(r"\\boxed\{(\d+)\}", row["completion"]):
                assert verdict["extracted"] == answer[1]


CHECKS = {
    "traces": check_traces,
    "train": check_train,
    "eval": check_eval,
    "check": check_check,
    "prepare": check_prepare,
    "sft": check_sft,
    "verify": check_verify,
}


@pytest.fixture(autouse=True)
def quiet(monkeypatch):
    monkeypatch.setattr(terminal.console, "file", io.StringIO())
    monkeypatch.setenv("COLUMNS", "1000")
    if not any(group.name == "prepare" for group in cli.app.registered_groups):
        cli.app.add_typer(prepare_app, name="prepare")


@pytest.mark.parametrize("seed", range(FILES // TOGETHER))
def test_a_corrupted_file_ends_no_command_with_a_traceback(seed, tmp_path, pocket_teacher, verifier):
    succeeded = set()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of Pillow, about the files
        for number, file in enumerate(corrupted_files(TOGETHER, tmp_path, seed=1000 + seed)):
            out, skip = tmp_path / f"out-{number}", number % 2 == 1
            out.mkdir()
            try:
                rows = rows_of(file.path)
            except Unreadable:
                rows = []
            for name, words in commands(file.path, out, pocket_teacher.grpc, verifier.grpc, skip=skip):
                try:
                    said, printed = run(words)
                    assert len(said) < 4000
                    CHECKS[name](file, out, said, printed, rows, skip)
                except Exception as error:
                    raise AssertionError(f"{file}: vold {' '.join(words)}: {error!r}") from error
                succeeded |= {name} if not said else set()
    assert succeeded >= {"traces", "train", "eval", "sft", "verify"}
