"""Run a program for the `code` verifier, with a process for each test. A bare interpreter runs this file.

What a test expects never comes here, but for asserts that cannot be split (`code_asserts`). So a program that controls
its process, takes over this file's functions or writes to its pipes can send any value, and gains nothing by that.

Standard input has lines of JSON: first the program and its limits, then one test at a time. Standard output has a line
of JSON for each test. The runner starts inside the sandbox. Before a program
runs, its process gives up the right to start processes and programs and to send signals (see
`seccomp.refuse_processes`), and gets limits of memory and CPU time.
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
from typing import Any, NamedTuple, NoReturn

DETAIL_BYTES = 400
WALL_FACTOR, WALL_EXTRA_SECONDS = 5.0, 2.0
WAITING_SHARE = 0.1
"""A process that has used a smaller share of its CPU time at the wall limit waits, and is not starved."""
PR_SET_PDEATHSIG, PR_SET_DUMPABLE = 1, 4
LARGE = 1 << 64
"""Integers from here on are packed in hexadecimal digits, which are read in linear time."""

_libc = ctypes.CDLL(None)
with contextlib.suppress(OSError):
    ctypes.CDLL("libseccomp.so.2")  # load it once here, not in the process of each test


def _load_seccomp() -> Any:
    path = Path(__file__).parents[1] / "sandbox" / "seccomp.py"
    spec = importlib.util.spec_from_file_location("seccomp", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class Runner:
    """Runs one program. job: the program, its setup and its limits."""

    def __init__(self, job: dict[str, Any]) -> None:
        self.job = job
        self.cpu_seconds_used = 0.0
        self.seccomp = _load_seccomp()

    def run(self, test: dict[str, Any]) -> dict[str, Any]:
        """Run the program for one test.

        Returns `ended`: "done", "failed", or "starved" if the process got too little CPU time to tell; `detail`: why it
        failed; and for "done", `stdout`, or `value`: JSON as the program's process wrote it.
        """
        seconds = min(self.job["seconds"], self.job["total_seconds"] - self.cpu_seconds_used)
        if seconds <= 0:
            return _outcome("failed", f"the other tests used {self.job['total_seconds']:g} s of CPU time, the limit")
        nonce = secrets.token_hex(16)
        (errors, output, results, limit_hit), status, cpu = self._execute(test, seconds, nonce)
        self.cpu_seconds_used += cpu
        if limit_hit == "output":
            return _outcome("failed", f"more than {test['limit']:,} bytes of output")
        if limit_hit == "wall":
            is_waiting = cpu < WAITING_SHARE * seconds
            detail = f"{cpu:.1f} s of CPU time and no end after {self._wall_limit(seconds):g} s"
            return _outcome("failed" if is_waiting else "starved", f"it waits: {detail}" if is_waiting else detail)
        if os.WIFSIGNALED(status):
            if cpu >= 0.9 * seconds:
                return _outcome("failed", f"more than {seconds:g} s of CPU time")
            return _outcome("failed", f"ended by {signal.Signals(os.WTERMSIG(status)).name}")
        if test["kind"] == "stdin":
            if os.WEXITSTATUS(status):
                return _outcome("failed", _last_line(errors) or f"exit status {os.WEXITSTATUS(status)}")
            return {**_outcome("done", ""), "stdout": output.decode("utf-8", "replace")}
        prefix, _, value = results.decode("utf-8", "replace").partition(" ")
        if prefix != nonce:
            return _outcome("failed", _last_line(errors) or "it ended before the test")
        return {**_outcome("done", ""), "value": value}

    def _execute(
        self, test: dict[str, Any], seconds: float, nonce: str
    ) -> tuple[tuple[bytes, bytes, bytes, str], int, float]:
        """(the result of `_communicate`, the exit status, the CPU seconds) of a new process for `test`."""
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
        communication = _communicate(
            (out_read, err_read, result_read),
            (in_write, test.get("stdin", "").encode("utf-8", "replace")),
            (test_write, _test_message(test, nonce)),
            test["limit"],
            self._wall_limit(seconds),
        )
        with contextlib.suppress(ProcessLookupError):
            os.killpg(pid, signal.SIGKILL)
        _, status, usage = os.wait4(pid, 0)
        for descriptor in (out_read, err_read, result_read, test_write):
            os.close(descriptor)
        return communication, status, usage.ru_utime + usage.ru_stime

    @staticmethod
    def _wall_limit(seconds: float) -> float:
        return WALL_FACTOR * seconds + WALL_EXTRA_SECONDS

    def _become_program(self, test: dict[str, Any], seconds: float, descriptors: tuple[int, ...]) -> NoReturn:
        status = 70
        try:
            os.setpgid(0, 0)
            _libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
            # Copy to high numbers first: otherwise a descriptor may be overwritten before it is copied.
            copies = [os.dup2(descriptor, 100 + n) for n, descriptor in enumerate(descriptors)]
            for n, descriptor in enumerate(copies):
                os.dup2(descriptor, n)
            os.closerange(len(copies), 256)
            memory = self.job["memory_bytes"]
            resource.setrlimit(resource.RLIMIT_AS, (memory, memory))
            whole_seconds = max(1, math.ceil(seconds))
            resource.setrlimit(resource.RLIMIT_CPU, (whole_seconds, whole_seconds))
            resource.setrlimit(resource.RLIMIT_NOFILE, (32, 32))
            signal.setitimer(signal.ITIMER_PROF, seconds)  # SIGPROF ends the process; RLIMIT_CPU has whole seconds only
            self.seccomp.refuse_processes()
            status = _run_program(self.job, test)
        except BaseException as error:
            _report_error(error)
            status = 1
        finally:
            with contextlib.suppress(BaseException):
                sys.stdout.flush()
            os._exit(status)


def _test_message(test: dict[str, Any], nonce: str) -> bytes:
    if test["kind"] == "stdin":
        return b""
    return json.dumps({"nonce": nonce, **test}).encode() + b"\n"


def _run_program(job: dict[str, Any], test: dict[str, Any]) -> int:
    """Run the program in this process, and return the exit status."""
    has_test_message = test["kind"] != "stdin"
    names: dict[str, Any] = {"__name__": "solution" if has_test_message else "__main__", "__builtins__": __builtins__}
    sys.stdin = open(0, encoding="utf-8", errors="replace", closefd=False)  # noqa: SIM115
    sys.stdout = open(1, "w", encoding="utf-8", errors="replace", closefd=False)  # noqa: SIM115
    sys.stderr = open(2, "w", encoding="utf-8", errors="replace", closefd=False)  # noqa: SIM115
    sys.argv = ["program.py"]
    own = _References(exec, eval, compile, json.loads, json.dumps, os.read, os.write)
    if job["setup"]:
        exec(compile(job["setup"], "<setup>", "exec"), names)  # noqa: S102
    try:
        exec(compile(job["program"], "<program>", "exec"), names)  # noqa: S102
    except SystemExit as exit_error:
        if has_test_message:
            raise
        if exit_error.code is None or exit_error.code == 0:
            return 0
        return exit_error.code if isinstance(exit_error.code, int) else 1
    if not has_test_message:
        return 0
    # The test is sent only now: a program that exits early, or prints a likely result, gains nothing.
    own.write(4, b"?")
    message = own.loads(_read_line(3, own.read))
    value: Any = None
    if message["kind"] == "call":
        value = _look_up_function(message["call"], names)(*message["args"], **message["kwargs"])
    else:
        own.exec(own.compile(message["code"], "<test>", "exec"), names)
        if message["kind"] == "evaluate":
            value = [_evaluate(expression, names, own) for expression in message["expressions"]]
    own.write(4, f"{message['nonce']} {own.dumps(value, default=_to_json_value)}".encode())
    return 0


class _References(NamedTuple):
    """The functions that work after the program, taken before it runs: it may put others in their places."""

    exec: Any
    eval: Any
    compile: Any
    loads: Any
    dumps: Any
    read: Any
    write: Any


def _evaluate(expression: str, names: dict[str, Any], own: _References) -> dict[str, Any]:
    """{"value": packed} of an expression, or {"raised": the error}."""
    try:
        return {"value": pack(own.eval(own.compile(expression, "<test>", "eval"), names))}
    except Exception as error:
        return {"raised": f"{type(error).__name__}: {str(error)[:200]}".removesuffix(": ")}


def pack(value: Any) -> Any:
    """Plain data as JSON that keeps the types apart; of another value, whether it is true (`code_asserts.unpack`)."""
    if value is None or isinstance(value, bool | float | str):
        return value
    if isinstance(value, int):
        return int(value) if -LARGE < value < LARGE else ["int", hex(value)]
    if isinstance(value, complex):
        return ["complex", value.real, value.imag]
    if isinstance(value, bytes | bytearray):
        return ["bytes", value.decode("latin-1")]
    if isinstance(value, dict):
        return ["dict", [[pack(key), pack(each)] for key, each in value.items()]]
    for kind in (list, tuple, set, frozenset):
        if isinstance(value, kind):
            return [kind.__name__, [pack(each) for each in value]]
    if isinstance(value, range):
        return ["range", pack(value.start), pack(value.stop), pack(value.step)]
    if _is_of("fractions", "Fraction", value):
        return ["fraction", pack(value.numerator), pack(value.denominator)]
    if _is_of("decimal", "Decimal", value):
        return ["decimal", str(value)]
    return ["object", bool(value)]


def _is_of(module: str, name: str, value: Any) -> bool:
    """Whether it is an instance of a class of a module, which is not imported for this."""
    return isinstance(value, getattr(sys.modules.get(module), name, ()))


def _read_line(descriptor: int, read: Any) -> bytes:
    line = bytearray()
    while not line.endswith(b"\n"):
        chunk = read(descriptor, 1 << 16)
        if not chunk:
            break
        line += chunk
    return bytes(line)


def _look_up_function(name: str, names: dict[str, Any]) -> Any:
    first, *rest = name.split(".")
    if first not in names and "Solution" in names:
        value = getattr(names["Solution"](), first)
    elif first not in names:
        raise NameError(f"the program defines no {name}")
    else:
        value = names[first]
    for attribute in rest:
        value = getattr(value, attribute)
    return value


def _to_json_value(value: Any) -> Any:
    if isinstance(value, set | frozenset):
        return sorted(value, key=repr)
    if hasattr(value, "tolist"):
        return value.tolist()
    raise TypeError(f"a {type(value).__name__} is not a JSON value")


def _report_error(error: BaseException) -> None:
    """Write one line to standard error: the type of the error and the start of its text."""
    with contextlib.suppress(BaseException):
        text = "" if isinstance(error, SystemExit) else str(error)[:200]
        os.write(2, f"\n{type(error).__name__}: {text}".encode("utf-8", "replace"))


def _communicate(
    readers: tuple[int, int, int], stdin: tuple[int, bytes], message: tuple[int, bytes], limit: int, wall: float
) -> tuple[bytes, bytes, bytes, str]:
    """(the end of standard error, standard output, results, the limit that was hit: "", "output" or "wall").

    readers: the pipes of standard output, standard error and results. stdin: a pipe, which is closed here, and its
    text. message: a pipe, and the text that is written to it on request of the program.
    """
    out_read, err_read, result_read = readers
    received = {out_read: bytearray(), err_read: bytearray(), result_read: bytearray()}
    deadline, limit_hit = time.monotonic() + wall, ""
    open_pipes = set(readers)
    unsent = {stdin[0]: memoryview(stdin[1])}
    for pipe in (stdin[0], message[0]):
        os.set_blocking(pipe, False)
    message_requested = False
    while open_pipes and not limit_hit:
        remaining = deadline - time.monotonic()
        if remaining <= 0:
            limit_hit = "wall"
            break
        readable, writable, _ = select.select(open_pipes, unsent, [], remaining)
        for pipe in writable:
            try:
                unsent[pipe] = unsent[pipe][os.write(pipe, unsent[pipe]) :]
            except BrokenPipeError:
                unsent[pipe] = memoryview(b"")
            if not unsent[pipe]:
                del unsent[pipe]
                if pipe == stdin[0]:
                    os.close(pipe)
        for descriptor in readable:
            chunk = os.read(descriptor, 1 << 16)
            if not chunk:
                open_pipes.discard(descriptor)
                continue
            if descriptor == result_read and not message_requested:
                message_requested, chunk = True, chunk[1:]
                unsent[message[0]] = memoryview(message[1])
            received[descriptor] += chunk
            if descriptor == err_read:
                del received[descriptor][:-DETAIL_BYTES]
            elif len(received[descriptor]) > limit:
                limit_hit = "output"
    if stdin[0] in unsent:
        os.close(stdin[0])
    return bytes(received[err_read]), bytes(received[out_read]), bytes(received[result_read]), limit_hit


def _last_line(errors: bytes) -> str:
    lines = errors.decode("utf-8", "replace").strip().splitlines()
    return lines[-1][:200] if lines else ""


def _outcome(ended: str, detail: str) -> dict[str, Any]:
    return {"ended": ended, "detail": detail}


def main() -> None:
    _libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    _libc.prctl(PR_SET_DUMPABLE, 0, 0, 0, 0)
    sys.set_int_max_str_digits(0)
    runner = Runner(json.loads(sys.stdin.readline()))
    for line in sys.stdin:
        sys.stdout.write(json.dumps(runner.run(json.loads(line))) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
