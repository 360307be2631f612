"""The output of the services from start to exit: no warnings that a user cannot act on."""

import asyncio
import json
import os
import shutil
import signal
import subprocess
import sys

import programs
import pytest
from vold_client import AsyncTeacherClient, AsyncVerifierClient, Completion, Item, TeacherClient, VerifierClient
from vold_trainer.pocket.shipped import checkpoint_path

ITEMS = [Item("numeric", "so 4", "4", id=str(number)) for number in range(20)]


def _call_teacher(url):
    with TeacherClient(url) as client:
        assert client.score([[1, 2]], [Completion(0, [3, 4])], top_k=2).scores[0].error is None
        assert len(list(client.generate([[1, 2]], n=2, max_tokens=4))) == 2

    async def leave_early():
        async with AsyncTeacherClient(url) as client:
            async for _ in client.generate([[1, 2]], n=8, max_tokens=60):
                break

    asyncio.run(leave_early())


def _call_verifier(url):
    with VerifierClient(url) as client:
        assert all(verdict.error is None for verdict in client.verify(ITEMS))

    async def leave_early():
        async with AsyncVerifierClient(url) as client:
            async for _ in client.verify_stream(ITEMS):
                break

    asyncio.run(leave_early())


@pytest.mark.parametrize(
    "options",
    [
        ("--model", "torn"),
        ("--backend", "upstream", "--model", "vllm+http://127.0.0.1:9", "--tokenizer", "torn"),
    ],
    ids=["torn weights", "no upstream"],
)
@pytest.mark.parametrize("grpc", ["127.0.0.1:0", "unix:teacher.sock"])
def test_a_teacher_that_cannot_start_prints_one_error_line(options, grpc, tmp_path, monkeypatch):
    shutil.copytree(checkpoint_path("teacher"), tmp_path / "torn")
    os.truncate(tmp_path / "torn" / "model.safetensors", 1000)
    monkeypatch.chdir(tmp_path)
    command = [sys.executable, "-m", "vold_teacher", "serve", "--http", "127.0.0.1:0", "--grpc", grpc, *options]
    done = programs.run(command)
    assert done.returncode == 1
    assert done.stdout == ""
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: ")
    assert not (tmp_path / "teacher.sock").exists()


@pytest.mark.parametrize(
    ("service", "call", "options"),
    [
        ("teacher", _call_teacher, ["--model", str(checkpoint_path("teacher"))]),
        ("verifier", _call_verifier, ["--workers", "1"]),
    ],
)
def test_a_service_prints_its_addresses_and_no_warning_from_start_to_exit(service, call, options, tmp_path):
    command = [sys.executable, "-m", f"vold_{service}", "serve", "--http", "127.0.0.1:0", "--grpc", "127.0.0.1:0"]
    command += [*options, "--log-format", "json", "--log-level", "info"]
    with (tmp_path / "log").open("w") as log:
        process = programs.start(command, stdout=subprocess.PIPE, stderr=log, text=True)
        try:
            ready = json.loads(process.stdout.readline())
            for url in (f"grpc://{ready['grpc']}", ready["http"]):
                call(url)
            process.send_signal(signal.SIGTERM)
            assert process.wait(60) == 0
        finally:
            process.kill()
        assert process.stdout.read() == ""
    lines = [json.loads(line) for line in (tmp_path / "log").read_text().splitlines()]
    assert lines
    assert [line for line in lines if line["level"] != "info"] == []
