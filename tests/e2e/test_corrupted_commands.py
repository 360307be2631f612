"""A corrupted file ends no command with a traceback: it is an error for the user, or rows that are what they say."""

import contextlib
import io
import json
import warnings
from pathlib import Path

import pytest
import typer
from corrupted_files import corrupted_files
from vold_client import VoldError
from vold_trainer import cli, terminal
from vold_trainer.config import DataConfig
from vold_trainer.errors import VoldTrainerError
from vold_trainer.sources import load_examples

FILES, TOGETHER = 500, 20
pytestmark = [pytest.mark.slow, pytest.mark.timeout(900), pytest.mark.filterwarnings("ignore::UserWarning:PIL")]


def commands(file: Path, out: Path, teacher: str, verifier: str):
    """The words of every command that reads rows of a file."""
    services = [f"teacher.url={teacher}", f"verifier.url={verifier}"]
    data = [f"data.source={file}", "data.limit=null", "data.offset=0"]
    small = ["steps=1", "rollout={prompts: 2, group: 2, max_tokens: 12}", "threads=1"]
    yield ["traces", "pocket:traces", f"out={out}/traces.jsonl", *services, *data, "keep=all", "max_tokens=24"]
    yield ["train", "pocket:vold", f"out={out}/train", "student.path=pocket:student", *services, *data, *small]
    one_set = f"data=[{{source: '{file}', check_images: pixels}}]"
    yield ["eval", "pocket:eval", f"out={out}/eval", services[1], one_set, "max_tokens=12"]
    check = ["check", "pocket:vold", "student.path=pocket:student", *services, *data, *small, f"out={out}/check"]
    yield [*check, "--no-dry"]
    if file.is_file():
        yield ["sft", "pocket:sft", f"traces={file}", f"out={out}/sft", "batch=1", "steps=1", "threads=1"]
        yield ["verify", str(file), "--url", verifier, "--out", f"{out}/verdicts.jsonl"]


def run(words: list[str]) -> str:
    """What the command says where it ends with an error for the user; "" if it succeeds. Raises any other error."""
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        try:
            cli.app(words, standalone_mode=False)
        except (VoldTrainerError, VoldError) as error:
            return str(error)
        except (SystemExit, typer.Exit):
            return "ended"
    return ""


def written_prompts_are_those_of_the_file(file: Path, traces: Path) -> bool:
    read = [[dict(message) for message in row.messages] for row in load_examples(DataConfig(source=str(file)))]
    return all(json.loads(line)["messages"] in read for line in traces.read_text().splitlines())


@pytest.mark.parametrize("seed", range(FILES // TOGETHER))
def test_a_corrupted_file_ends_no_command_with_a_traceback(seed, tmp_path, pocket_teacher, verifier, monkeypatch):
    monkeypatch.setattr(terminal.console, "file", io.StringIO())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of Pillow, about the files
        for number, file in enumerate(corrupted_files(TOGETHER, tmp_path, seed=1000 + seed)):
            out = tmp_path / f"out-{number}"
            out.mkdir()
            for words in commands(file.path, out, pocket_teacher.grpc, verifier.grpc):
                try:
                    said = run(words)
                except Exception as error:
                    raise AssertionError(f"{file}: vold {' '.join(words)}: {error!r}") from error
                assert len(said) < 4000
                traces = out / "traces.jsonl"
                assert not traces.exists() or written_prompts_are_those_of_the_file(file.path, traces)
