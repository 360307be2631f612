"""The cost of a slow teacher per step, with and without generating ahead: the pocket world, a teacher with latency.

python benchmarks/overlap.py
"""

import asyncio
import contextlib
import statistics
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path

from common import POCKET_TEACHER, serving, show, uncached_teacher
from training import train
from vold_trainer.terminal import silence

STEPS, WARMUP_STEPS = 7, 1
DELAYS = (0.0, 1.0, 2.0)
AHEAD = (0, 1)


@contextlib.contextmanager
def delayed_proxy(target: str, seconds: float) -> Iterator[str]:
    """The URL of a proxy for `target` that delays every reply by `seconds`."""
    host, _, port = target.removeprefix("http://").rpartition(":")
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()

    async def forward(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, delay: float) -> None:
        while data := await reader.read(1 << 16):
            loop.call_later(delay, writer.write, data)
        loop.call_later(delay, writer.close)

    async def connect(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        target_reader, target_writer = await asyncio.open_connection(host, int(port))
        await asyncio.gather(forward(reader, target_writer, 0.0), forward(target_reader, writer, seconds))

    async def listen() -> asyncio.Server:
        return await asyncio.start_server(connect, "127.0.0.1", 0)

    server = asyncio.run_coroutine_threadsafe(listen(), loop).result()
    try:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join()


def measure(out: Path, teacher: str, verifier: str, ahead: int) -> tuple[float, float]:
    """Median seconds of a step, and of its wait for scores."""
    urls = [f"teacher.url={teacher}", f"verifier.url={verifier}"]
    settings = ["student.path=pocket:student", f"rollout.ahead={ahead}", *urls]
    rows = train("vold", out, STEPS, settings)[WARMUP_STEPS:-1]  # the last step generates nothing ahead
    return tuple(statistics.median(row[key] for row in rows) for key in ("time/step", "time/score_wait"))


def main() -> None:
    silence()
    rows = []
    with (
        tempfile.TemporaryDirectory() as folder,
        uncached_teacher(POCKET_TEACHER) as teacher,
        serving("verifier", "--workers", "1") as verifier,
    ):
        for delay in DELAYS:
            with delayed_proxy(teacher["http"], delay) as url:
                medians = [measure(Path(folder) / f"{delay}-{ahead}", url, verifier["grpc"], ahead) for ahead in AHEAD]
            (step, wait), (step_ahead, wait_ahead) = medians
            rows.append(
                [
                    f"{delay:g} s",
                    *(f"{value:.2f}" for value in (step, wait, step_ahead, wait_ahead)),
                    f"{step_ahead / step:.2f}x",
                ]
            )
    counted = STEPS - WARMUP_STEPS - 1
    show(
        f"Seconds a step with a teacher behind a slow line, 16 prompts x 8 completions, median of {counted}",
        ["answers later by", "step", "of it waiting", "step, ahead=1", "of it waiting", "ahead / in turn"],
        rows,
    )


if __name__ == "__main__":
    main()
