"""The sandbox confines programs of `code`, and Python that a verifier evaluates in its own process.

The tests use the layers that this machine allows: the server must name every layer that the tests observe.
"""

import os
import socket
import threading
import time
from pathlib import Path

import httpx
import psutil
import pytest
from verifier_server import item, running
from vold_proto.v1 import status_pb2, verifier_pb2

SECRET = "only-the-service-may-know"


@pytest.fixture(scope="module")
def server():
    with running(
        *(
            "--workers",
            "1",
            "--sandbox-workers",
            "2",
            "--enable",
            "code",
            "--plugin",
            "sandbox_plugin",
            "--hard-time-limit",
            "20",
        ),
        environment={"VOLD_API_KEYS": "", "SOME_TOKEN": SECRET, "VOLD_JUDGE_KEY": SECRET},
    ) as server:
        yield server


@pytest.fixture(scope="module")
def layers(server):
    return " ".join(server.stub.ListVerifiers(verifier_pb2.ListVerifiersRequest()).sandbox_layers)


def program(text, tests, **parameters):
    return item("code", f"Here it is:\n\n```python\n{text}\n```\n", tests=tests, **parameters)


ADDER = "a, b = map(int, input().split())\nprint(a + b)"
ADDS = [{"stdin": "1 2\n", "stdout": "3\n"}, {"stdin": "40 2\n", "stdout": "42\n"}]
NOTHING = [{"stdin": "", "stdout": "done"}]


def test_the_layers_are_named(server, layers):
    assert "seccomp" in layers
    assert "no privileges" in layers
    by_name = {v.name: v.pool for v in server.stub.ListVerifiers(verifier_pb2.ListVerifiersRequest()).verifiers}
    assert by_name["code"] == by_name["reasoning-gym"] == "sandbox"
    assert by_name["math"] == "main"
    assert by_name["composite"] == "service"


def test_programs_are_verified_by_their_tests(server):
    factorial = "class Solution:\n    def f(self, n):\n        return 1 if n < 2 else n * self.f(n - 1)"
    calls = [{"call": "f", "args": [5], "expected": 120}, {"call": "f", "args": [0], "expected": 1}]
    cases = [
        (program(ADDER, ADDS), 1.0),
        (program("print(3)", ADDS), 0.0),
        (program("print(3)", ADDS, partial=True), 0.5),
        (program(factorial, calls), 1.0),
        (program("def f(n):\n    return 120", calls, partial=True), 0.5),
        (program("def f(n):\n    return n", [{"code": "assert f(2) == 2"}, {"code": "assert f(3) == 3"}]), 1.0),
        (program("def f(n):\n    return n", [{"code": "assert f(2) == 2"}, {"code": "assert f(3) == 4"}]), 0.0),
        (item("code", f"```python\n{ADDER}\n```", '{"inputs": ["1 2"], "outputs": ["3"]}'), 1.0),
        (item("code", "```\ndef g(x): return [x]\n```", '{"fn_name": "g", "inputs": [[1]], "outputs": [[[1]]]}'), 1.0),
        (item("code", "```python\ndef h(x): return x\n```", '["assert h(1) == 1"]'), 1.0),
        (item("code", f"```python\nprint(1)\n```\nno:\n```python\n{ADDER}\n```", tests=ADDS), 1.0),
        (item("code", f"<think>```python\n{ADDER}\n```</think> done", tests=ADDS), 0.0),
        (item("code", f"```python\n{ADDER}", tests=ADDS), 0.0),
        (program("import asyncio\nasync def f():\n    print(3)\nasyncio.run(f())", ADDS[:1]), 1.0),
        (
            program("import threading as t\nt.Thread(target=print, args=(3,)).start()", ADDS[:1]),
            1.0,
        ),
        (program("print(f'{1/3:.6f} yes')", [{"stdin": "", "stdout": "0.3333333 yes"}], compare="tokens"), 1.0),
    ]
    results = server.verify(*(case for case, _ in cases))
    assert [result.reward for result in results] == [reward for _, reward in cases], [r.reason for r in results]
    assert all(not result.HasField("error") for result in results)


@pytest.mark.parametrize("tests", ["", "{", "[]", "{}", '[{"stdin": "1"}]', "[1]"])
def test_a_reference_without_tests_is_an_error(server, tests):
    (result,) = server.verify(item("code", f"```python\n{ADDER}\n```", tests))
    assert result.error.code == status_pb2.INVALID_ARGUMENT
    assert not result.HasField("reward")


CHEATS = {
    "leaves early": "import os\nos._exit(0)",
    "exits": "import sys\nsys.exit(0)",
    "prints a pass": "print('passed')",
    "writes a result": "import os\nos.write(4, b'passed null')",
    "writes to all": "import os\nfor n in range(3, 64):\n  try: os.write(n, b'? null\\n{}')\n  except OSError: pass",
    "reads what is expected": (
        "import gc, sys\ntexts = [str(o) for o in gc.get_objects() if isinstance(o, (dict, list, str))]\n"
        "print('secret-answer' if any('secret' + '-answer' in t for t in texts) else 'not found')"
    ),
}


def test_a_program_cannot_fake_a_pass(server):
    tests = [{"code": "assert f(2) == 4"}], [{"call": "f", "args": [2], "expected": 4}], [{"stdout": "secret-answer"}]
    items = [program(cheat, test) for cheat in CHEATS.values() for test in tests]
    results = server.verify(*items, program(ADDER, ADDS))
    assert [result.reward for result in results] == [0.0] * len(items) + [1.0]


BOMBS = {
    "fork bomb": "import os\nwhile True:\n    try: os.fork()\n    except OSError: break\nos.fork()",
    "memory bomb": "x = []\nwhile True:\n    x.append(bytearray(1 << 24))",
    "one great block": "x = bytearray(8 << 30)",
    "endless loop": "while True: pass",
    "endless output": "while True: print('x' * 1000)",
    "endless errors": "import sys\nwhile True: print('x' * 1000, file=sys.stderr)",
    "native loop": "import hashlib\nhashlib.pbkdf2_hmac('sha256', b'', b'', 10**9)",
    "deep recursion": "import sys\nsys.setrecursionlimit(10**9)\ndef f(): f()\nf()",
    "waits": "import time\ntime.sleep(1000)",
    "threads": "import threading, time\nwhile True: threading.Thread(target=time.sleep, args=(1000,)).start()",
    "deaf": "import signal\nfor n in range(1, 32):\n  try: signal.signal(n, signal.SIG_IGN)\n  except OSError: pass\n"
    "signal.setitimer(signal.ITIMER_PROF, 0)\nwhile True: pass",
}


def test_bombs_are_wrong_answers_and_change_no_other_result(server):
    limits = {"seconds": 0.3, "memory_mb": 256}
    items = []
    for bomb in BOMBS.values():
        items += [program(bomb, [{"stdin": "", "stdout": "x"}], **limits), program(ADDER, ADDS)]
    results = server.verify(*items, timeout=200)
    assert {name: result.reward for name, result in zip(BOMBS, results[::2], strict=True)} == dict.fromkeys(BOMBS, 0.0)
    assert [result.reward for result in results[1::2]] == [1.0] * len(BOMBS)
    left = [process for process in server.descendants() if "code_runner.py" in " ".join(process.cmdline())]
    assert not psutil.wait_procs(left, timeout=10)[1]


def report_refusal(statement):
    """Return a program that prints "done" if `statement` fails."""
    return f"try:\n    {statement}\nexcept OSError:\n    print('done')\nelse:\n    print('not refused')"


REFUSED = [
    "import subprocess; subprocess.run(['/bin/true'])",
    "import os; os.execv('/bin/true', ['true'])",
    "import os; os.posix_spawn('/bin/true', ['true'], {})",
    "import os; os.setsid()",
    "import os; os.kill(os.getppid(), 9)",
    "import os; os.kill(-1, 9)",
    "import os; os.killpg(0, 0)",
    "import socket; socket.socket()",
    "import socket; socket.create_connection(('127.0.0.1', 80))",
    "import socket; socket.socket(socket.AF_UNIX)",
    "open('canary', 'w')",
    "open('/tmp/canary', 'w')",
    "open('/dev/shm/canary', 'w')",
    "open('/dev/null', 'r+')",
    "import os; os.mkdir('/tmp/canary')",
    "import os; os.unlink('/dev/null')",
    "import os; os.symlink('/', '/tmp/canary')",
    "import os; os.chroot('/')",
    "import os; os.setuid(0) if os.getuid() else os.mkdir('/canary')",
    f"import os; os.listdir({str(Path.home())!r})",
    "open(f'/proc/{__import__(\"os\").getppid()}/environ').read()",
    "open('/etc/shadow').read()",
]


def test_programs_cannot_use_the_system(server):
    results = server.verify(*(program(report_refusal(statement), NOTHING) for statement in REFUSED))
    assert {
        statement: result.reason for statement, result in zip(REFUSED, results, strict=True) if result.reward != 1.0
    } == {}


def test_no_program_connects_to_a_listening_socket(server):
    with socket.create_server(("127.0.0.1", 0)) as listening:
        listening.settimeout(2)
        port = listening.getsockname()[1]
        call = f"import socket\nsocket.create_connection(('127.0.0.1', {port}), 1)"
        results = server.verify(program(call, NOTHING), item("evaluate", call), item("evaluate-unwatched", call))
        with pytest.raises(TimeoutError):
            listening.accept()
    assert results[0].reward == 0.0
    assert results[1].error.code == status_pb2.PERMISSION_DENIED
    assert results[2].error.code == status_pb2.INTERNAL


def test_the_environment_holds_no_secret(server):
    seen = "import os\nprint([name for name in os.environ if name != 'LC_CTYPE'])"  # Python sets that one itself
    (result,) = server.verify(program(seen, [{"stdin": "", "stdout": "[]"}]))
    assert result.reward == 1.0
    (evaluated,) = server.verify(item("evaluate-unwatched", "result = sorted(os.environ.items())"))
    assert SECRET not in evaluated.extracted
    assert "VOLD" not in evaluated.extracted


def test_the_layers_confine_without_the_tripwire(server, layers, tmp_path):
    tmp_path.chmod(0o777)
    canary = tmp_path / "canary"
    attempts = [
        f"open({str(canary)!r}, 'w')",
        f"os.mkdir({str(canary)!r})",
        f"os.open({str(canary)!r}, os.O_CREAT | os.O_RDWR)",
        "import socket; socket.socket()",
        "open('/etc/shadow').read()",
        f"open('/proc/{server.process.pid}/environ').read()",
        f"os.kill({server.process.pid}, 0)",
        f"os.kill({os.getpid()}, 0)",
        "import ctypes\nif ctypes.CDLL(None).unshare(0x10000000): raise OSError",
        "import ctypes\nif ctypes.CDLL(None).mount(b'x', b'/', b'tmpfs', 0, None): raise OSError",
    ]
    results = server.verify(*(item("evaluate-unwatched", attempt) for attempt in attempts))
    codes = [result.error.code for result in results]
    assert codes == [status_pb2.INTERNAL] * len(attempts), list(zip(attempts, codes, strict=True))
    assert not canary.exists()
    uids = {process.uids().real for process in server.descendants() if 'pool": "sandbox' in " ".join(process.cmdline())}
    if "other user" in layers:
        assert 65534 in uids


HITTING = [
    "open('canary', 'w')",
    "os.open('canary', os.O_CREAT)",
    "os.system('touch canary')",
    "__import__('subprocess').run(['touch', 'canary'])",
    "__import__('pathlib').Path('canary').touch()",
    "__import__('socket').socket()",
    "__import__('ctypes').CDLL(None)",
    "os.fork()",
    "os.kill(os.getppid(), 9)",
    "open('/etc/passwd').read()",
]


def tripwire_restarts(server):
    lines = httpx.get(f"{server.url}/metrics").text.splitlines()
    name = 'vold_verifier_worker_restarts_total{reason="tripwire"}'
    return sum(float(line.split()[-1]) for line in lines if line.startswith(name))


def test_the_tripwire_ends_only_the_worker(server):
    before = tripwire_restarts(server)
    items = []
    for attempt in HITTING:
        items += [item("evaluate", attempt), item("evaluate-swallowing", attempt), item("evaluate", "result = 1")]
    results = server.verify(*items)
    for attempt, hit, swallowed, innocent in zip(HITTING, results[::3], results[1::3], results[2::3], strict=True):
        assert hit.error.code == status_pb2.PERMISSION_DENIED, attempt
        assert not hit.HasField("reward")
        assert swallowed.reward == 0.0
        assert "the answer is a program" in swallowed.reason
        assert innocent.extracted == "1"
    while tripwire_restarts(server) < before + 2 * len(HITTING):
        time.sleep(0.05)


def test_no_process_of_the_sandbox_outlives_a_killed_server():
    with running(
        "--workers", "1", "--enable", "code", "--plugin", "sandbox_plugin", "--hard-time-limit", "60"
    ) as server:
        busy = program("while True: pass", NOTHING, seconds=30)
        asleep = program("import time\ntime.sleep(1000)", NOTHING, seconds=30)
        call = server.stub.Verify.future(verifier_pb2.VerifyRequest(items=[busy, asleep, item("spin")]))
        while len(programs := [p for p in server.descendants() if "code_runner.py" in " ".join(p.cmdline())]) < 2:
            time.sleep(0.05)
        processes = server.descendants()
        assert set(programs) < set(processes)
        assert not call.done()
        server.process.kill()
        assert not psutil.wait_procs(processes, timeout=10)[1]


def test_the_sandbox_starts_with_its_first_item():
    with running("--workers", "1") as server:
        assert len(server.descendants()) == 3
        assert not server.stub.ListVerifiers(verifier_pb2.ListVerifiersRequest()).sandbox_layers
        done = threading.Event()
        entry = {"answer": "3", "metadata": {"source_dataset": "basic_arithmetic"}}
        first = server.stub.Verify.future(
            verifier_pb2.VerifyRequest(items=[item("reasoning-gym", "<answer>3</answer>", entry=entry)])
        )
        first.add_done_callback(lambda _: done.set())
        assert server.verify(item("numeric", "1", "1"))[0].reward == 1.0
        assert done.wait(60)
        assert first.result().results[0].reward == 1.0
        assert server.stub.ListVerifiers(verifier_pb2.ListVerifiersRequest()).sandbox_layers
