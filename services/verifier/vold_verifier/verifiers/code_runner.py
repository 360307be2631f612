"""Runs a program of the `code` verifier, each test in a process of its own. A bare interpreter runs this file.

Lines of JSON on standard input: first the program and its limits, then one test at a time; a line of JSON on standard
output answers each. Nothing here knows what a test expects. It starts inside the sandbox, and before a program runs
its process gives up what is left: processes, programs, signals (see `seccomp.refuse_processes_too`), memory, CPU time.
"""

import contextlib
import ctypes
import importlib.util
import json
import math
import os
import resource
import secrets
import select
import signal
import sys
import time
from pathlib import Path
from typing import Any, NoReturn

DETAIL_BYTES = 400
WALL_FACTOR, WALL_EXTRA_SECONDS = 5.0, 2.0
WAITED_SHARE = 0.1
PR_SET_PDEATHSIG = 1

_libc = ctypes.CDLL(None)
with contextlib.suppress(OSError):
    ctypes.CDLL("libseccomp.so.2")  # loaded here once, and not in each program's process


def _seccomp() -> Any:
    path = Path(__file__).parents[1] / "sandbox" / "seccomp.py"
    spec = importlib.util.spec_from_file_location("seccomp", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class Runner:
    def __init__(self, order: dict[str, Any]) -> None:
        self.order = order
        self.used = 0.0
        self.seccomp = _seccomp()

    def run(self, test: dict[str, Any]) -> dict[str, Any]:
        """What the program did: `ended` is done, failed, starved; `detail` says how; `stdout` or `value`."""
        seconds = min(self.order["seconds"], self.order["total_seconds"] - self.used)
        if seconds <= 0:
            return _ended("failed", f"the other tests used {self.order['total_seconds']:g} s of CPU time, the limit")
        in_read, in_write = os.pipe()
        out_read, out_write = os.pipe()
        err_read, err_write = os.pipe()
        test_read, test_write = os.pipe()
        result_read, result_write = os.pipe()
        pid = os.fork()
        if pid == 0:
            self._become_program(test, seconds, (in_read, out_write, err_write, test_read, result_write))
        for descriptor in (in_read, out_write, err_write, test_read, result_write):
            os.close(descriptor)
        nonce = secrets.token_hex(16)
        errors, output, results, why = _watch(
            (out_read, err_read, result_read),
            (in_write, test.get("stdin", "").encode("utf-8", "replace")),
            (test_write, _task(test, nonce)),
            test["limit"],
            self._wall(seconds),
        )
        with contextlib.suppress(ProcessLookupError):
            os.killpg(pid, signal.SIGKILL)
        _, status, usage = os.wait4(pid, 0)
        for descriptor in (out_read, err_read, result_read, test_write):
            os.close(descriptor)
        cpu = usage.ru_utime + usage.ru_stime
        self.used += cpu
        if why == "output":
            return _ended("failed", f"more than {test['limit']:,} bytes of output")
        if why == "wall":
            waited = cpu < WAITED_SHARE * seconds
            what = f"{cpu:.1f} s of CPU time and no end after {self._wall(seconds):g} s"
            return _ended("failed" if waited else "starved", f"it waits: {what}" if waited else what)
        if os.WIFSIGNALED(status):
            if cpu >= 0.9 * seconds:
                return _ended("failed", f"more than {seconds:g} s of CPU time")
            return _ended("failed", f"ended by {signal.Signals(os.WTERMSIG(status)).name}")
        if test["kind"] == "stdin":
            if os.WEXITSTATUS(status):
                return _ended("failed", _last_line(errors) or f"exit status {os.WEXITSTATUS(status)}")
            return {**_ended("done", ""), "stdout": output.decode("utf-8", "replace")}
        mark, _, value = results.decode("utf-8", "replace").partition(" ")
        if mark != nonce:
            return _ended("failed", _last_line(errors) or "it ended before the test")
        with contextlib.suppress(ValueError, RecursionError):
            return {**_ended("done", ""), "value": json.loads(value)}
        return _ended("failed", "the value returned cannot be written down")

    @staticmethod
    def _wall(seconds: float) -> float:
        return WALL_FACTOR * seconds + WALL_EXTRA_SECONDS

    def _become_program(self, test: dict[str, Any], seconds: float, descriptors: tuple[int, ...]) -> NoReturn:
        status = 70
        try:
            os.setpgid(0, 0)
            _libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
            # Away from the low numbers first, or one may be overwritten before it is copied.
            high = [os.dup2(descriptor, 100 + n) for n, descriptor in enumerate(descriptors)]
            for n, descriptor in enumerate(high):
                os.dup2(descriptor, n)
            os.closerange(len(high), 256)
            memory = self.order["memory_bytes"]
            resource.setrlimit(resource.RLIMIT_AS, (memory, memory))
            whole = max(1, math.ceil(seconds))
            resource.setrlimit(resource.RLIMIT_CPU, (whole, whole))
            resource.setrlimit(resource.RLIMIT_NOFILE, (32, 32))
            signal.setitimer(signal.ITIMER_PROF, seconds)  # its signal ends the process; RLIMIT_CPU knows whole seconds
            self.seccomp.refuse_processes_too()
            status = _program(self.order, test)
        except BaseException as error:
            _tell(error)
            status = 1
        finally:
            with contextlib.suppress(BaseException):
                sys.stdout.flush()
            os._exit(status)


def _task(test: dict[str, Any], nonce: str) -> bytes:
    if test["kind"] == "stdin":
        return b""
    return json.dumps({"nonce": nonce, **test}).encode() + b"\n"


def _program(order: dict[str, Any], test: dict[str, Any]) -> int:
    """Runs in the program's own process; returns its exit status."""
    asked = test["kind"] != "stdin"
    names: dict[str, Any] = {"__name__": "solution" if asked else "__main__", "__builtins__": __builtins__}
    sys.stdin = open(0, encoding="utf-8", errors="replace", closefd=False)  # noqa: SIM115
    sys.stdout = open(1, "w", encoding="utf-8", errors="replace", closefd=False)  # noqa: SIM115
    sys.stderr = open(2, "w", encoding="utf-8", errors="replace", closefd=False)  # noqa: SIM115
    sys.argv = ["program.py"]
    if order["setup"]:
        exec(compile(order["setup"], "<setup>", "exec"), names)  # noqa: S102
    try:
        exec(compile(order["program"], "<program>", "exec"), names)  # noqa: S102
    except SystemExit as leaving:
        if asked:
            raise
        if leaving.code is None or leaving.code == 0:
            return 0
        return leaving.code if isinstance(leaving.code, int) else 1
    if not asked:
        return 0
    # The test comes only now, so that a program that leaves early, or prints what a test might, has won nothing.
    os.write(4, b"?")
    task = json.loads(_line(3))
    if task["kind"] == "assert":
        exec(compile(task["code"], "<test>", "exec"), names)  # noqa: S102
        value: Any = None
    else:
        value = _function(task["call"], names)(*task["args"], **task["kwargs"])
    os.write(4, f"{task['nonce']} {json.dumps(value, default=_plain)}".encode())
    return 0


def _line(descriptor: int) -> bytes:
    read = bytearray()
    while not read.endswith(b"\n"):
        chunk = os.read(descriptor, 1 << 16)
        if not chunk:
            break
        read += chunk
    return bytes(read)


def _function(name: str, names: dict[str, Any]) -> Any:
    first, *rest = name.split(".")
    if first not in names and "Solution" in names:
        found = getattr(names["Solution"](), first)
    elif first not in names:
        raise NameError(f"the program defines no {name}")
    else:
        found = names[first]
    for attribute in rest:
        found = getattr(found, attribute)
    return found


def _plain(value: Any) -> Any:
    if isinstance(value, set | frozenset):
        return sorted(value, key=repr)
    if hasattr(value, "tolist"):
        return value.tolist()
    raise TypeError(f"a {type(value).__name__} is not a JSON value")


def _tell(error: BaseException) -> None:
    """One line, on standard error: the kind of the error and the head of its text."""
    with contextlib.suppress(BaseException):
        text = "" if isinstance(error, SystemExit) else str(error)[:200]
        os.write(2, f"\n{type(error).__name__}: {text}".encode("utf-8", "replace"))


def _watch(
    readers: tuple[int, int, int], stdin: tuple[int, bytes], task: tuple[int, bytes], limit: int, wall: float
) -> tuple[bytes, bytes, bytes, str]:
    """(standard error's end, standard output, results, why it was cut off: "", "output" or "wall").

    readers: of standard output, standard error and results. stdin: pipe and text, closed here. task: pipe and what is
    written to it once the program asks.
    """
    out_read, err_read, result_read = readers
    held = {out_read: bytearray(), err_read: bytearray(), result_read: bytearray()}
    until, why = time.monotonic() + wall, ""
    left = set(readers)
    sending = {stdin[0]: memoryview(stdin[1])}
    for pipe in (stdin[0], task[0]):
        os.set_blocking(pipe, False)
    asked = False
    while left and not why:
        remaining = until - time.monotonic()
        if remaining <= 0:
            why = "wall"
            break
        readable, writable, _ = select.select(left, sending, [], remaining)
        for pipe in writable:
            try:
                sending[pipe] = sending[pipe][os.write(pipe, sending[pipe]) :]
            except BrokenPipeError:
                sending[pipe] = memoryview(b"")
            if not sending[pipe]:
                del sending[pipe]
                if pipe == stdin[0]:
                    os.close(pipe)
        for descriptor in readable:
            chunk = os.read(descriptor, 1 << 16)
            if not chunk:
                left.discard(descriptor)
                continue
            if descriptor == result_read and not asked:
                asked, chunk = True, chunk[1:]
                sending[task[0]] = memoryview(task[1])
            held[descriptor] += chunk
            if descriptor == err_read:
                del held[descriptor][:-DETAIL_BYTES]
            elif len(held[descriptor]) > limit:
                why = "output"
    if stdin[0] in sending:
        os.close(stdin[0])
    return bytes(held[err_read]), bytes(held[out_read]), bytes(held[result_read]), why


def _last_line(errors: bytes) -> str:
    lines = errors.decode("utf-8", "replace").strip().splitlines()
    return lines[-1][:200] if lines else ""


def _ended(how: str, detail: str) -> dict[str, Any]:
    return {"ended": how, "detail": detail}


def main() -> None:
    _libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    sys.set_int_max_str_digits(0)
    runner = Runner(json.loads(sys.stdin.readline()))
    for line in sys.stdin:
        sys.stdout.write(json.dumps(runner.run(json.loads(line))) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
