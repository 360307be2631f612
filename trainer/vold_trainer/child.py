"""Child processes that end with the run: `python -m vold_trainer.child PARENT MODULE ARGUMENT...`.

The new process prepares itself by running this module. A `preexec_fn` would run in a fork of the run, and a fork of a
process with gRPC channels may abort before it becomes another program (github.com/grpc/grpc/issues/43055).
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
def child_process(
    module: str, arguments: Sequence[str], log: Path, environment: Mapping[str, str]
) -> Iterator[subprocess.Popen[bytes]]:
    """Run `python -m module` with these arguments; its output goes to the file `log`.

    The child and the processes that it started end on leaving, or when this process ends.
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
        with contextlib.suppress(
            OSError
        ):  # grandchildren that outlived the child, as vLLM's workers do when vLLM is killed
            os.killpg(process.pid, signal.SIGKILL)


def _main(parent: int, module: str, *arguments: str) -> None:
    """Become `module`, ended by the kernel when the trainer ends. Ignore Ctrl-C, which the trainer handles."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGTERM)  # PR_SET_PDEATHSIG
    if os.getppid() != parent:  # the parent ended before prctl
        return
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    os.execv(sys.executable, [sys.executable, "-m", module, *arguments])  # noqa: S606 - our own command


if __name__ == "__main__":
    _main(int(sys.argv[1]), *sys.argv[2:])
