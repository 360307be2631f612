"""Starts programs in forks of a process that has imported what they import: `python preloaded.py FD`.

Nine tenths of a service's start are the imports of torch and transformers, which a suite would pay a hundred times.
What a fork runs is the program itself, as `python -m` or `python SCRIPT` would, with its own arguments, environment,
standard streams and exit. programs.py is the other end of FD: a message of JSON with four descriptors starts a program;
its process id, then its wait status, go back through the fourth.
"""

import array
import contextlib
import gc
import importlib
import json
import os
import runpy
import select
import signal
import socket
import sys

PRELOADED = (
    "torch",
    "transformers.models.llama.modeling_llama",
    "transformers.models.qwen2_5_vl.modeling_qwen2_5_vl",
    "transformers.models.qwen3.modeling_qwen3",
    "vold_teacher.backends.torch",
    "vold_teacher.server",
    "vold_verifier.engine.engine",
    "vold_trainer.evaluation",
    "vold_trainer.training.train",
    "vold_trainer.coldstart.sft",
    "vold_trainer.coldstart.traces",
)
LARGEST_MESSAGE = 1 << 20


def next_program(control: socket.socket) -> dict | None:
    """Fork for each message; the request itself in the fork, None at the end in the parent."""
    told: dict[int, socket.socket] = {}
    ended, wake = os.pipe()
    os.set_blocking(wake, False)
    signal.set_wakeup_fd(wake)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the programs, and for who started them
    while True:
        ready, _, _ = select.select([control, ended], [], [])
        if ended in ready:
            os.read(ended, 4096)
            report_ended(told)
        if control not in ready:
            continue
        message, descriptors, _, _ = socket.recv_fds(control, LARGEST_MESSAGE, 4)
        if not message:
            return None
        *streams, status = descriptors
        process = os.fork()
        if process == 0:
            signal.set_wakeup_fd(-1)
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            signal.signal(signal.SIGINT, signal.default_int_handler)
            for number, stream in enumerate(streams):
                os.dup2(stream, number)
            for descriptor in (*descriptors, ended, wake, *(one.fileno() for one in told.values())):
                os.close(descriptor)
            for one in told.values():
                one.detach()
            control.close()
            return json.loads(message)
        for stream in streams:
            os.close(stream)
        told[process] = socket.socket(fileno=status)
        told[process].sendall(array.array("q", [process]).tobytes())


def report_ended(told: dict[int, socket.socket]) -> None:
    while True:
        try:
            process, status = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return
        if process == 0:
            return
        with told.pop(process) as reporter, contextlib.suppress(OSError):  # who started it may be gone
            reporter.sendall(array.array("q", [status]).tobytes())


def become(request: dict) -> None:
    """This process is `python -m MODULE ARGUMENT...`, or `python SCRIPT ARGUMENT...`, from here on."""
    os.environ.clear()
    os.environ.update(request["environment"])
    os.chdir(request["folder"])
    if request["new_session"]:
        os.setsid()
    module = request["arguments"][1] if request["arguments"][0] == "-m" else None
    script = request["arguments"][0]
    sys.path[0] = request["folder"] if module else os.path.dirname(os.path.abspath(script))
    sys.path[1:1] = [path for path in request["environment"].get("PYTHONPATH", "").split(os.pathsep) if path]
    sys.argv = request["arguments"][1:] if module else request["arguments"]
    # What this process bought for itself goes: the program sees the streams that it was given.
    sys.stdin, sys.stdout, sys.stderr = (
        open(number, mode, buffering=1 if number == 2 else -1, closefd=False)  # noqa: SIM115
        for number, mode in ((0, "r"), (1, "w"), (2, "w"))
    )
    if module:
        runpy.run_module(module, run_name="__main__", alter_sys=True)
    else:
        runpy.run_path(script, run_name="__main__")


def main() -> None:
    control = socket.socket(fileno=int(sys.argv[1]))
    for module in PRELOADED:
        with contextlib.suppress(ModuleNotFoundError):  # without torch, `make test-python` has the verifier alone
            importlib.import_module(module)
    gc.collect()
    gc.freeze()  # so that no fork copies pages just to count references
    request = next_program(control)
    if request is not None:
        become(request)


if __name__ == "__main__":
    main()
