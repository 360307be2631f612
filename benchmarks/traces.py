"""How full does `vold traces` keep four replicas, how close is that to a list schedule, and what is its memory?

    python benchmarks/traces.py                        # all tables: up to an hour on two idle cores
    python benchmarks/traces.py --prompts 640 --memory 1000,10000

The replicas are real teacher services whose backend sleeps a known time a token in place of computing: lengths are
drawn from the prompt alone. --before FOLDER measures the command of another checkout, at the same services.
"""

import argparse
import asyncio
import contextlib
import hashlib
import heapq
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import psutil
from common import POCKET_TEACHER, show
from vold_service.fairness import FairShare
from vold_service.processes import Processes
from vold_service.serve import run
from vold_service.tls import Tls
from vold_teacher import server
from vold_teacher.backends.base import Capabilities, ModelInfo, ScoredBatch
from vold_teacher.backends.loop import LoopDecoder, LoopThread
from vold_teacher.settings import TeacherSettings
from vold_teacher.tokenizer import Tokenizer
from vold_teacher.types import GenerateChunk, GeneratePrompt, SamplingOptions, SequenceScore
from vold_teacher.types import Sequence as Scored

REPLICAS = 4
LAST = 0.02
"""The share of the prompts that begin last, after which a replica may have nothing more to do."""


class SleepingBackend:
    """Generates by sleeping: `seconds` a token, of a length that follows from the prompt (log-normal, `mean` tokens).

    log: a line for each completion, when it began and ended (seconds on the machine's monotonic clock) and its tokens.
    """

    def __init__(self, model: Path, seconds: float, mean: int, log: Path, rows: int) -> None:
        self.seconds, self.mean, self.rows = seconds, mean, rows
        self._log = log.open("w", buffering=1)
        self._thread = LoopThread("sleep")
        tokenizer = Tokenizer(model)
        self._eos = tokenizer.special_ids["eos"]
        self.info = ModelInfo(
            vocab_size=tokenizer.size,
            max_sequence=1 << 20,
            dtype="float32",
            backend="sleep",
            eos_ids=(self._eos,),
            weights_fingerprint="sleep",
            capabilities=Capabilities(max_top_k=0, candidates=False, entropy=False, hidden_states=False),
        )

    def score(self, sequences: Sequence[Scored]) -> ScoredBatch:
        """Zeros, for the warm-up of the service: no score is asked for."""
        scores = [SequenceScore(np.zeros(len(each.completion), np.float32)) for each in sequences]
        return ScoredBatch(list(scores), 0, 0)

    def decoder(self, share: FairShare | None = None) -> LoopDecoder:
        return LoopDecoder(self._thread, self._complete, max_rows=self.rows, share=share)

    def close(self) -> None:
        self._thread.close()

    async def _complete(
        self, prompt: GeneratePrompt, index: int, options: SamplingOptions
    ) -> AsyncIterator[GenerateChunk]:
        began, tokens = time.monotonic(), min(length(prompt.ids.tobytes(), self.mean), prompt.max_tokens)
        await asyncio.sleep(tokens * self.seconds)
        if prompt.seed is not None:  # the warm-up of the service has none
            self._log.write(f"{began} {time.monotonic()} {tokens}\n")
        ids = np.full(tokens, 40, np.int32)
        ids[-1] = self._eos
        yield GenerateChunk(prompt.index, index, ids, np.zeros(tokens, np.float32), finish_reason="stop")


def length(content: bytes, mean: int) -> int:
    """Tokens of the completion of a prompt: log-normal with sigma 0.6, at least 2 and at most 5 times the mean."""
    digest = int.from_bytes(hashlib.blake2b(content, digest_size=8).digest(), "big")
    normal = np.random.default_rng(digest).standard_normal()
    return int(np.clip(round(mean * np.exp(0.6 * normal - 0.18)), 2, 5 * mean))


def serve(seconds: float, mean: int, rows: int, log: Path) -> None:
    """Run a teacher service with the sleeping backend until SIGTERM."""
    settings = TeacherSettings(
        model=[str(POCKET_TEACHER)], http=None, grpc="127.0.0.1:0", max_rows=rows, max_queue_tokens=1 << 24
    )
    server.make_backend = lambda settings, location: SleepingBackend(Path(location), seconds, mean, log, rows)

    async def main(processes: Processes) -> None:
        tls: Tls | None = None
        await server.main(settings, settings.keys(), tls, processes)

    run(main, name="sleeping-teacher", settings=settings)


@dataclass(frozen=True)
class Replicas:
    """urls, logs and processes of the services, with `rows` slots each."""

    urls: list[str]
    logs: list[Path]
    processes: list[subprocess.Popen[str]]
    rows: int

    def completions(self) -> list[tuple[float, float, int]]:
        """(began, ended, tokens) of every completion, in the order in which they began."""
        lines = [line.split() for log in self.logs for line in log.read_text().splitlines()]
        return sorted((float(began), float(ended), int(tokens)) for began, ended, tokens in lines)

    def cpu_seconds(self) -> float:
        """CPU time of all services so far, with the processes that they started."""
        total = 0.0
        for process in self.processes:
            root = psutil.Process(process.pid)
            for each in (root, *root.children(recursive=True)):
                with contextlib.suppress(psutil.NoSuchProcess):
                    times = each.cpu_times()
                    total += times.user + times.system
        return total


@contextlib.contextmanager
def serving(folder: Path, *, seconds: float, mean: int, rows: int) -> Iterator[Replicas]:
    urls, logs, processes = [], [folder / f"replica-{number}.log" for number in range(REPLICAS)], []
    try:
        for log in logs:
            options = ["--seconds", str(seconds), "--mean", str(mean), "--rows", str(rows), "--log", str(log)]
            command = [sys.executable, __file__, "serve", *options]
            processes.append(subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True))
        for process in processes:
            assert process.stdout is not None
            urls.append(f"grpc://{json.loads(process.stdout.readline())['grpc']}")
        yield Replicas(urls, logs, processes, rows)
    finally:
        for process in processes:
            process.terminate()
            process.wait()


@dataclass(frozen=True)
class Measured:
    """seconds: of the whole command. generation: from the first completion's begin to the last one's end. best: the
    same of a list schedule of the same lengths. busy: the share of the slots in use until the last LAST of the prompts
    begin. servers, command: cores in use. peak: the command's memory, bytes.
    """

    seconds: float
    generation: float
    best: float
    busy: float
    servers: float
    command: float
    peak: int


def measure(
    replicas: Replicas, folder: Path, prompts: int, token_seconds: float, before: Path | None = None
) -> Measured:
    """Run the command on so many prompts. before: the checkout whose command it is; None for this one."""
    rows = folder / f"prompts-{prompts}.jsonl"
    with rows.open("w") as file:
        for number in range(prompts):
            row = {"id": f"p{number}", "prompt": f"{number} + {number * 7} = ?", "reference": str(number * 8)}
            file.write(json.dumps(row) + "\n")
    settings = [f"out={folder / 'traces.jsonl'}", f"teacher.url=[{','.join(replicas.urls)}]", "teacher.timeout=3600"]
    settings += ["verifier=null", "keep=all", "max_tokens=100000", f"data={{source: {rows}}}"]
    settings += ["request=32"] if before is not None else []
    environment = dict(os.environ)
    if before is not None:
        rooms = ("proto", "packing", "client", "services/common", "services/teacher", "services/verifier", "trainer")
        environment["PYTHONPATH"] = ":".join(str(before / room) for room in rooms)
    known, cpu, started = len(replicas.completions()), replicas.cpu_seconds(), time.monotonic()
    process = subprocess.Popen(
        [sys.executable, "-m", "vold_trainer", "traces", *settings, "--overwrite"],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
    )
    assert process.stderr is not None
    errors = process.stderr.read()
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"the command ended with {process.returncode}:\n{errors}")
    seconds = time.monotonic() - started
    completions = replicas.completions()[known:]
    slots = REPLICAS * replicas.rows
    begins, ends = np.array([each[0] for each in completions]), np.array([each[1] for each in completions])
    until = begins[int((1 - LAST) * len(begins)) - 1]
    used = np.clip(np.minimum(ends, until) - begins, 0, None).sum()
    durations = [tokens * token_seconds for _, _, tokens in completions]
    return Measured(
        seconds=seconds,
        generation=float(ends.max() - begins.min()),
        best=list_schedule(durations, slots),
        busy=float(used / (slots * (until - begins.min()))),
        servers=(replicas.cpu_seconds() - cpu) / seconds,
        command=(usage.ru_utime + usage.ru_stime) / seconds,
        peak=usage.ru_maxrss * 1024,
    )


def list_schedule(durations: Sequence[float], slots: int) -> float:
    """Seconds until all are done if each begins, in this order, as soon as a slot is free (Graham, 1966)."""
    free = [0.0] * slots
    for duration in durations:
        heapq.heapreplace(free, free[0] + duration)
    return max(free)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prompts", type=int, default=2560, help="of the table of slots; 0: none")
    parser.add_argument("--mean", type=int, default=200, help="tokens of a completion")
    parser.add_argument("--seconds", type=float, default=0.03, help="that a token takes")
    parser.add_argument("--rows", type=int, default=16, help="slots of each replica")
    parser.add_argument("--memory", default="1000,10000,100000", help="numbers of prompts of the table of memory")
    parser.add_argument("--before", type=Path, help="a checkout whose command is measured too")
    arguments = parser.parse_args()
    commands = [("this one", None), *([("before", arguments.before.resolve())] if arguments.before else [])]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        options = {"seconds": arguments.seconds, "mean": arguments.mean, "rows": arguments.rows}
        if arguments.prompts:
            with serving(folder, **options) as replicas:
                table = []
                for said, checkout in commands:
                    result = measure(replicas, folder, arguments.prompts, arguments.seconds, checkout)
                    ratio = result.generation / result.best
                    figures = [
                        f"{result.busy:.1%}",
                        f"{result.generation:.0f} s",
                        f"{result.best:.0f} s",
                        f"{ratio:.2f}x",
                    ]
                    table.append([said, *figures, f"{result.servers:.2f}", f"{result.command:.2f}"])
            show(
                f"Slots of {REPLICAS} replicas x {arguments.rows}, {arguments.prompts} prompts of "
                f"{arguments.mean * arguments.seconds:g} s on average",
                [
                    "command",
                    "busy",
                    "generation",
                    "list schedule",
                    "ratio",
                    "cores of the servers",
                    "cores of the command",
                ],
                table,
            )
        sizes = [int(each) for each in arguments.memory.split(",") if each]
        if not sizes:
            return
        with serving(folder, seconds=0.0, mean=20, rows=64) as replicas:
            rows = []
            for said, checkout in commands:
                peaks = []
                for size in sizes:
                    result = measure(replicas, folder, size, 0.0, checkout)
                    peaks.append(f"{result.peak / 2**20:.0f} MiB")
                    cpu = 1000 * result.command * result.seconds / size
                    print(f"{said}, {size:,} prompts: {peaks[-1]}, {cpu:.1f} ms of CPU a prompt", file=sys.stderr)
                rows.append([said, *peaks])
        show("Peak memory of the command", ["command", *(f"{size:,} prompts" for size in sizes)], rows)


if __name__ == "__main__":
    if sys.argv[1:2] == ["serve"]:
        parser = argparse.ArgumentParser()
        parser.add_argument("--seconds", type=float)
        parser.add_argument("--mean", type=int)
        parser.add_argument("--rows", type=int)
        parser.add_argument("--log", type=Path)
        serve(**vars(parser.parse_args(sys.argv[2:])))
    else:
        main()
