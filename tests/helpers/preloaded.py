"""Starts programs as forks of a process that has done their imports: `python preloaded.py FD`.

Importing torch and transformers is nine tenths of a service's start, and a test suite starts services a hundred times.
A fork runs the program as `python -m MODULE` or `python SCRIPT` would, with its own arguments, environment, standard
streams and exit. FD is a listening socket, to which programs.py of every test process connects. A JSON message with
four descriptors starts a program; its process id, and later its wait status, are sent back through the fourth one.
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
MAX_MESSAGE_BYTES = 1 << 20


def fork_programs(listener: socket.socket) -> dict | None:
    """Fork for each message. Returns the request in the fork, and None in the parent when the test process that
    connected first has closed its connection.
    """
    connections = [listener.accept()[0]]
    reporters: dict[int, socket.socket] = {}
    ended, wake = os.pipe()
    os.set_blocking(wake, False)
    signal.set_wakeup_fd(wake)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C ends the programs and the tests, not this process
    while True:
        ready, _, _ = select.select([*connections, listener, ended], [], [])
        if ended in ready:
            os.read(ended, 4096)
            report_ended(reporters)
        if listener in ready:
            connections.append(listener.accept()[0])
        control = next((connection for connection in connections if connection in ready), None)
        if control is None:
            continue
        message, descriptors, _, _ = socket.recv_fds(control, MAX_MESSAGE_BYTES, 4)
        if not message:
            if control is connections[0]:
                return None
            connections.remove(control)
            control.close()
            continue
        *streams, status = descriptors
        process = os.fork()
        if process == 0:
            signal.set_wakeup_fd(-1)
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            signal.signal(signal.SIGINT, signal.default_int_handler)
            for number, stream in enumerate(streams):
                os.dup2(stream, number)
            for descriptor in (*descriptors, ended, wake, *(reporter.fileno() for reporter in reporters.values())):
                os.close(descriptor)
            for reporter in reporters.values():
                reporter.detach()
            for end in (listener, *connections):
                end.close()
            return json.loads(message)
        for stream in streams:
            os.close(stream)
        reporters[process] = socket.socket(fileno=status)
        reporters[process].sendall(array.array("q", [process]).tobytes())


def report_ended(reporters: dict[int, socket.socket]) -> None:
    """Send the wait status of every ended program through its socket."""
    while True:
        try:
            process, status = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return
        if process == 0:
            return
        with reporters.pop(process) as reporter, contextlib.suppress(OSError):  # the test process may have exited
            reporter.sendall(array.array("q", [status]).tobytes())


def run_program(request: dict) -> None:
    """Run the program in this process, as `python -m MODULE ARGUMENT...` or `python SCRIPT ARGUMENT...` does."""
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
    # Replace the text streams of the preloaded process by new ones on the program's descriptors.
    sys.stdin, sys.stdout, sys.stderr = (
        open(number, mode, buffering=1 if number == 2 else -1, closefd=False)  # noqa: SIM115
        for number, mode in ((0, "r"), (1, "w"), (2, "w"))
    )
    if module:
        runpy.run_module(module, run_name="__main__", alter_sys=True)
    else:
        runpy.run_path(script, run_name="__main__")


def main() -> None:
    listener = socket.socket(fileno=int(sys.argv[1]))
    for module in PRELOADED:
        with contextlib.suppress(ModuleNotFoundError):  # `make test-python` runs the verifier without torch
            importlib.import_module(module)
    gc.collect()
    gc.freeze()  # so that reference counts do not make the forks copy pages
    request = fork_programs(listener)
    if request is not None:
        run_program(request)


if __name__ == "__main__":
    main()
