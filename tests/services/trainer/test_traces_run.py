"""`vold traces` against real services: the same bytes whatever the replicas, the timing and the kills."""

import contextlib
import json
import shutil
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import programs
import pytest
from held_tenant import KEY, write_keys
from servers import serving
from vold_trainer.coldstart.journal import Journal, partial_path
from vold_trainer.coldstart.traces import TracesSummary, run_traces
from vold_trainer.config import SftConfig, TracesConfig, load
from vold_trainer.errors import ResumeRefusedError, RunError, UsageError
from vold_trainer.files import read_json_lines
from vold_trainer.pocket.shipped import checkpoint_path
from vold_trainer.student.models import load_student
from vold_trainer.student.traces import read_traces

TEACHER = ("--model", str(checkpoint_path("teacher")), "--threads", "1")
SETTINGS = ("data.limit=12", "samples=2", "temperature=1.3")


def config(out: Path, teacher: str, verifier: str, *overrides: str) -> TracesConfig:
    urls = [f"teacher.url={teacher}", f"verifier.url={verifier}"]
    return load(TracesConfig, Path("pocket:traces"), [f"out={out}", *urls, *SETTINGS, *overrides])


def make(*arguments, resume: bool = False) -> tuple[bytes, TracesSummary]:
    settings = config(*arguments)
    summary = run_traces(settings, resume=resume)
    assert not partial_path(settings.out).exists()
    content = settings.out.read_bytes()
    assert summary.written == content.count(b"\n")
    assert summary.written + sum(summary.dropped.values()) == summary.requested
    return content, summary


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory, pocket_teacher, verifier) -> dict[str, bytes]:
    """The traces of one replica, and their journal."""
    folder = tmp_path_factory.mktemp("undisturbed")
    finish = Journal.finish

    def copied(journal, out, kept):
        shutil.copy(journal.path, folder / "journal")
        return finish(journal, out, kept)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Journal, "finish", copied)
        content, _ = make(folder / "t.jsonl", pocket_teacher.grpc, verifier.grpc)
    return {"traces": content, "journal": (folder / "journal").read_bytes()}


def test_replicas_and_timing_change_no_byte(tmp_path, pocket_teacher, verifier, undisturbed):
    both = f"[{pocket_teacher.grpc},{pocket_teacher.http}]"
    content, summary = make(tmp_path / "t.jsonl", both, verifier.grpc, "in_flight=3")
    assert content == undisturbed["traces"]
    rows = [json.loads(line) for line in content.splitlines()]
    assert summary.tokens == sum(len(row["completion_ids"]) for row in rows)
    ids = [row["id"] for row in rows]
    assert ids == sorted(ids)
    assert len(set(ids)) == len(ids)


@pytest.mark.parametrize("share", [0.4, 0.99])
def test_what_was_there_is_gone_on_with(tmp_path, pocket_teacher, verifier, undisturbed, share, capfd):
    out, journal = tmp_path / "t.jsonl", undisturbed["journal"]
    partial_path(out).write_bytes(journal[: round(share * len(journal))])
    content, summary = make(out, pocket_teacher.grpc, verifier.grpc, resume=True)
    assert content == undisturbed["traces"]
    assert 0 < summary.found <= summary.requested
    assert summary.generated < summary.tokens
    assert f"{summary.found} answers are in {partial_path(out)}" in " ".join(capfd.readouterr().err.split())


@pytest.mark.parametrize("keep", ["shortest-correct", "first-correct"])
def test_one_trace_of_a_prompt(tmp_path, pocket_teacher, verifier, undisturbed, keep):
    content, summary = make(tmp_path / "t.jsonl", pocket_teacher.grpc, verifier.grpc, f"keep={keep}", "in_flight=5")
    by_row: dict[str, list[dict]] = {}
    for row in map(json.loads, undisturbed["traces"].splitlines()):
        by_row.setdefault(row["id"].rpartition("-")[0], []).append(row)
    first, shortest = (lambda row: 0), (lambda row: len(row["completion_ids"]))
    chosen = [min(rows, key=first if keep == "first-correct" else shortest) for rows in by_row.values()]
    assert list(map(json.loads, content.splitlines())) == chosen
    assert summary.dropped["another was kept"] == 24 - len(chosen) - summary.dropped.get(
        "wrong", 0
    ) - summary.dropped.get("not finished", 0)


def test_other_settings_rows_or_another_teacher_are_refused(tmp_path, pocket_teacher, verifier, undisturbed):
    out = tmp_path / "t.jsonl"

    def resume(*overrides: str, teacher: str = pocket_teacher.grpc) -> None:
        partial_path(out).write_bytes(undisturbed["journal"])
        run_traces(config(out, teacher, verifier.grpc, *overrides), resume=True)

    for override, said in (
        ("seed=1", r"seed: 0 -> 1 \(it draws the completions\)"),
        ("temperature=1.0", r"temperature: 1.3 -> 1.0"),
        ("keep=all", r"verifier: not set -> .*|keep: correct -> all"),
        ("samples=3", r"samples: 2 -> 3"),
        ("verifier.name=math", r"verifier.name: numeric -> math \(it decides which"),
        ("data.limit=11", r"data.limit: 12 -> 11 \(the rows, in their order\)"),
    ):
        with pytest.raises(ResumeRefusedError, match=said):
            resume(override)
    with pytest.raises(ResumeRefusedError, match="has traces of the teacher"):
        resume(teacher=f"openai+{pocket_teacher.http}/v1")
    assert partial_path(out).read_bytes() == undisturbed["journal"]
    resume("in_flight=2", "teacher.timeout=99", "outage.wait=5")  # what has no part in the traces
    assert out.read_bytes() == undisturbed["traces"]


def test_an_endpoint_of_openais_api_gives_text_that_a_student_learns_from(tmp_path, pocket_teacher):
    out = tmp_path / "t.jsonl"
    teacher = f"openai+{pocket_teacher.http}/v1"
    content, summary = make(out, teacher, "local:", "keep=all", "verifier=null", "samples=1", "data.limit=6")
    assert (
        content
        == make(out, teacher, "local:", "keep=all", "verifier=null", "samples=1", "data.limit=6", "in_flight=2")[0]
    )
    rows = read_json_lines(out)
    assert all("completion_ids" not in row for row in rows)
    student = load_student(load(SftConfig, Path("pocket:sft")).student)
    for trace, row in zip(read_traces(out, student), rows, strict=True):
        assert trace.ids[-1] in student.eos_ids
        assert student.tokenizer.decode(trace.ids, skip_special_tokens=True) == row["completion"]
    tokens = sum(len(student.tokenizer.encode(row["completion"], add_special_tokens=False)) + 1 for row in rows)
    assert summary.tokens == tokens


def test_a_trace_that_is_too_long_is_dropped(tmp_path, pocket_teacher, undisturbed):
    rows = [json.loads(line) for line in undisturbed["traces"].splitlines()]
    settings = ("keep=all", "verifier=null", "max_trace_tokens=40")
    content, summary = make(tmp_path / "t.jsonl", pocket_teacher.grpc, "local:", *settings)
    kept = {json.loads(line)["id"] for line in content.splitlines()}
    assert summary.dropped["too long"] > 0
    assert not {row["id"] for row in rows if len(row["completion_ids"]) > 38} & kept  # the prompt has some too


def test_a_teacher_that_refuses_every_prompt_is_told_at_once(tmp_path, pocket_teacher):
    settings = ("keep=all", "verifier=null", "samples=1", "data.limit=400", f"teacher.system={'1+1=2 ' * 400}")
    with pytest.raises(RunError, match=r"answers none of the prompts: \d+ teacher: InvalidArgument \(row 'train-"):
        make(tmp_path / "t.jsonl", pocket_teacher.grpc, "local:", *settings)
    with pytest.raises(UsageError, match="there is no model 'none' here"):
        make(tmp_path / "t.jsonl", pocket_teacher.grpc, "local:", *settings, "teacher.model=none")


# Kills: of the command, of a replica, of the verifier.

MANY = ("data.limit=30", "in_flight=6")


@contextlib.contextmanager
def when_written(out: Path, size: int, act: Callable[[], None]) -> Iterator[None]:
    """Call `act` once the unfinished traces have so many bytes."""
    acted = threading.Event()

    def watch() -> None:
        while not (partial_path(out).exists() and partial_path(out).stat().st_size >= size):
            time.sleep(0.02)
        act()
        acted.set()

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    yield
    assert acted.wait(30), "it was over before"


@pytest.fixture(scope="module")
def many(tmp_path_factory, pocket_teacher, verifier) -> bytes:
    return make(tmp_path_factory.mktemp("many") / "t.jsonl", pocket_teacher.grpc, verifier.grpc, *MANY)[0]


@pytest.mark.slow
def test_kill_9_of_the_command_costs_what_was_under_way(tmp_path, pocket_teacher, verifier, many):
    out = tmp_path / "t.jsonl"
    urls = [f"out={out}", f"teacher.url={pocket_teacher.grpc}", f"verifier.url={verifier.grpc}"]
    command = [sys.executable, "-m", "vold_trainer", "traces", "pocket:traces", *urls, *SETTINGS, *MANY]
    found = []
    for number, size in enumerate((2_000, 9_000, 16_000)):
        process = programs.start([*command, "--resume"][: len(command) + (number > 0)])
        while not (partial_path(out).exists() and partial_path(out).stat().st_size > size):
            assert process.poll() is None
            time.sleep(0.02)
        process.kill()
        process.wait(30)
        lines = partial_path(out).read_bytes().count(b"\n")
        found.append(lines)
        assert not out.exists()
    refused = programs.run(command)
    assert (refused.returncode, "holds unfinished traces: go on with --resume" in " ".join(refused.stderr.split())) == (
        1,
        True,
    )
    content, summary = make(out, pocket_teacher.grpc, verifier.grpc, *MANY, resume=True)
    assert content == many
    assert found == sorted(found)
    assert summary.found > 0
    over = programs.run([*command, "--resume"])
    assert (over.returncode, "is complete" in over.stdout) == (0, True)


@pytest.mark.slow
def test_ctrl_c_says_how_to_go_on(tmp_path, pocket_teacher, verifier, many):
    out = tmp_path / "t.jsonl"
    urls = [f"out={out}", f"teacher.url={pocket_teacher.grpc}", f"verifier.url={verifier.grpc}"]
    command = [sys.executable, "-m", "vold_trainer", "traces", "pocket:traces", *urls, *SETTINGS, *MANY]
    process = programs.start(command, stderr=programs.subprocess.PIPE, text=True)
    while not (partial_path(out).exists() and partial_path(out).stat().st_size > 5_000):
        time.sleep(0.02)
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(60)
    assert process.returncode == 143
    assert "the answers so far are in" in " ".join(errors.split())
    assert make(out, pocket_teacher.grpc, verifier.grpc, *MANY, resume=True)[0] == many


@pytest.mark.slow
def test_a_replica_that_is_killed_leaves_its_part_to_the_other(tmp_path, pocket_teacher, verifier, many, capfd):
    with serving("teacher", *TEACHER) as other:
        out = tmp_path / "t.jsonl"
        with when_written(out, 6_000, other.process.kill):
            content, _ = make(out, f"[{pocket_teacher.grpc},{other.grpc}]", verifier.grpc, *MANY)
    assert content == many
    assert f"teacher {other.grpc} is away" in " ".join(capfd.readouterr().err.split())


@pytest.mark.slow
@pytest.mark.parametrize("service", ["teacher", "verifier"])
def test_a_service_that_is_killed_and_started_again_is_waited_for(
    tmp_path, pocket_teacher, verifier, many, service, capfd
):
    socket = ("--grpc", f"unix:{tmp_path}/s", "--http", "none")
    arguments = (*TEACHER, *socket) if service == "teacher" else ("--workers", "1", *socket)
    with contextlib.ExitStack() as stack:
        server = stack.enter_context(serving(service, *arguments))

        def kill_and_start() -> None:
            server.process.kill()
            server.process.wait()
            stack.enter_context(serving(service, *arguments))

        out = tmp_path / "t.jsonl"
        urls = {"teacher": pocket_teacher.grpc, "verifier": verifier.grpc, service: server.grpc}
        with when_written(out, 6_000, kill_and_start):
            content, _ = make(out, urls["teacher"], urls["verifier"], *MANY)
    assert content == many
    said = " ".join(capfd.readouterr().err.split())
    # The verifier's client repeats its calls, which may take longer than the new process takes to start.
    assert service == "verifier" or f"{service} unix:{tmp_path}/s is away" in said
    assert said.count("is away") == said.count("answers again")


@pytest.mark.slow
def test_a_tenant_with_few_requests_at_a_time_gets_all_of_them(tmp_path, verifier, many, monkeypatch, capfd):
    write_keys(tmp_path / "keys.yaml", KEY, max_concurrent=3)
    monkeypatch.setenv("VOLD_TEACHER_API_KEY", KEY)
    with serving("teacher", *TEACHER, "--api-keys", str(tmp_path / "keys.yaml")) as server:
        content, _ = make(tmp_path / "t.jsonl", server.grpc, verifier.grpc, *MANY, "in_flight=16")
    assert content == many
    assert "throttles calls" in " ".join(capfd.readouterr().err.split())


@pytest.mark.slow
def test_another_teacher_in_the_middle_is_refused(tmp_path, verifier):
    socket = ("--threads", "1", "--grpc", f"unix:{tmp_path}/s", "--http", "none")
    with contextlib.ExitStack() as stack:
        server = stack.enter_context(serving("teacher", "--model", str(checkpoint_path("teacher")), *socket))

        def swap() -> None:
            server.process.kill()
            server.process.wait()
            stack.enter_context(serving("teacher", "--model", str(checkpoint_path("teacher-b")), *socket))

        out = tmp_path / "t.jsonl"
        with (
            when_written(out, 6_000, swap),
            pytest.raises(RunError, match=r"is now teacher-b .*, and the traces so far are of teacher"),
        ):
            make(out, server.grpc, verifier.grpc, *MANY)
        assert partial_path(out).exists()
