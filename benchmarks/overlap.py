"""What a slow teacher costs a step, with and without drawing ahead: the pocket world, a teacher behind a slow line.

python benchmarks/overlap.py
"""

import asyncio
import contextlib
import statistics
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path

from common import POCKET_TEACHER, serving, show
from vold_trainer.config import TrainConfig, load
from vold_trainer.files import read_json_lines
from vold_trainer.terminal import quiet
from vold_trainer.training.train import run_train

STEPS, WARM = 7, 1
DELAYS = (0.0, 1.0, 2.0)
AHEAD = (0, 1)


@contextlib.contextmanager
def slow_line(target: str, seconds: float) -> Iterator[str]:
    """A URL that leads to `target`, every answer `seconds` late."""
    host, _, port = target.removeprefix("http://").rpartition(":")
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()

    async def carry(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, late: float) -> None:
        while data := await reader.read(1 << 16):
            loop.call_later(late, writer.write, data)
        loop.call_later(late, writer.close)

    async def meet(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there = await asyncio.open_connection(host, int(port))
        await asyncio.gather(carry(reader, there[1], 0.0), carry(there[0], writer, seconds))

    async def listen() -> asyncio.Server:
        return await asyncio.start_server(meet, "127.0.0.1", 0)

    server = asyncio.run_coroutine_threadsafe(listen(), loop).result()
    try:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join()


def measure(out: Path, teacher: str, verifier: str, ahead: int) -> tuple[float, float]:
    """Median seconds of (a step, waiting for scores in it)."""
    urls = [f"teacher.url={teacher}", f"verifier.url={verifier}"]
    settings = ["student.path=pocket:student", f"steps={STEPS}", "optim.lr=1e-8", f"rollout.ahead={ahead}"]
    run_train(load(TrainConfig, Path("pocket:vold"), [f"out={out}", *urls, *settings]))
    rows = read_json_lines(out / "metrics.jsonl")[WARM:-1]  # the last step draws nothing ahead
    return tuple(statistics.median(row[key] for row in rows) for key in ("time/step", "time/score_wait"))


def main() -> None:
    quiet()
    rows = []
    with (
        tempfile.TemporaryDirectory() as folder,
        serving("teacher", "--model", str(POCKET_TEACHER), "--threads", "1", "--cache-bytes", "0") as teacher,
        serving("verifier", "--workers", "1") as verifier,
    ):
        for delay in DELAYS:
            with slow_line(teacher["http"], delay) as url:
                found = [measure(Path(folder) / f"{delay}-{ahead}", url, verifier["grpc"], ahead) for ahead in AHEAD]
            (turn, waited), (ahead, left) = found
            rows.append(
                [f"{delay:g} s", *(f"{value:.2f}" for value in (turn, waited, ahead, left)), f"{ahead / turn:.2f}x"]
            )
    show(
        f"Seconds a step with a teacher behind a slow line, 16 prompts x 8 completions, median of {STEPS - WARM - 1}",
        ["answers later by", "step", "of it waiting", "step, ahead=1", "of it waiting", "ahead / in turn"],
        rows,
    )


if __name__ == "__main__":
    main()
