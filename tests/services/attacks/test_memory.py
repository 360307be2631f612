"""Programs of `code` where a container gives them no isolation: they read no other process's memory."""

import contextlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from verifier_server import Server, item

HELPERS = Path(__file__).parents[2] / "helpers"
SERVE = ("serve", "--http", "127.0.0.1:0", "--grpc", "127.0.0.1:0", "--workers", "1", "--enable", "code")

READERS = """import os
read = []
for pid in os.listdir('/proc'):
    if pid.isdigit() and int(pid) != os.getpid():
        for name in ('mem', 'environ'):
            try:
                os.open(f'/proc/{pid}/{name}', os.O_RDONLY)
                read.append((pid, name))
            except OSError:
                pass
print(read)"""


def start(*options):
    path = os.pathsep.join(os.path.abspath(entry) for entry in sys.path if entry)
    return subprocess.Popen(
        [sys.executable, str(HELPERS / "bare_container.py"), "vold_verifier", *SERVE, *options],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": path},
    )


@contextlib.contextmanager
def serving(*options):
    process = start(*options)
    try:
        line = process.stdout.readline()
        assert line, process.stderr.read()
        server = Server(process, json.loads(line))
        with server.channel:
            yield server
    finally:
        process.kill()
        process.communicate()


@pytest.mark.skipif(sys.platform != "linux", reason="the sandbox needs Linux")
def test_code_is_refused_on_a_machine_that_gives_no_isolation():
    process = start()
    try:
        out, errors = process.communicate(timeout=120)
    finally:
        process.kill()
    assert process.returncode
    assert not out
    assert "--allow-weak-sandbox" in errors
    assert "no privileges, seccomp" in errors


@pytest.mark.skipif(sys.platform != "linux", reason="the sandbox needs Linux")
def test_no_program_reads_the_memory_of_a_worker_or_of_the_service():
    with serving("--allow-weak-sandbox") as server:
        tests = [{"stdin": "", "stdout": "[]"}]
        (result,) = server.verify(item("code", f"```python\n{READERS}\n```", tests=tests))
        names = {" ".join(process.cmdline()) for process in server.descendants()}
    assert any('"pool": "main"' in name for name in names)
    assert any('"pool": "sandbox"' in name for name in names)
    assert result.reward == 1.0, result.reason
