"""Programs that a run starts, and that end with it: `python -m vold_trainer.child PARENT MODULE ARGUMENT...`.

What prepares the new process runs in it, as this module. As a `preexec_fn` it would run in a fork of the run, and a
fork of a process with gRPC channels may abort before it becomes another program (github.com/grpc/grpc/issues/43055).
"""

import contextlib
import ctypes
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path


@contextlib.contextmanager
def child(
    module: str, arguments: Sequence[str], log: Path, environment: Mapping[str, str]
) -> Iterator[subprocess.Popen[bytes]]:
    """`python -m module` with these arguments, what it says in the file `log`. It ends on leaving, with the processes
    that it started, or when this process ends.
    """
    with log.open("wb") as stream:
        process = subprocess.Popen(  # noqa: S603 - our own command
            [sys.executable, "-m", "vold_trainer.child", str(os.getpid()), module, *arguments],
            stdout=stream,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            env=dict(environment),
            process_group=0,
        )
    try:
        yield process
    finally:
        process.terminate()
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        with contextlib.suppress(OSError):  # processes of its own that outlived it: vLLM's do, where it is killed
            os.killpg(process.pid, signal.SIGKILL)


def _main(parent: int, module: str, *arguments: str) -> None:
    """A killed trainer must not leave its services behind; and Ctrl-C is for the trainer to handle."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGTERM)  # PR_SET_PDEATHSIG
    if os.getppid() != parent:  # it ended before that
        return
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    os.execv(sys.executable, [sys.executable, "-m", module, *arguments])  # noqa: S606 - our own command


if __name__ == "__main__":
    _main(int(sys.argv[1]), *sys.argv[2:])
