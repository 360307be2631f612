"""The throughput, latency and fairness of a shared teacher with 1, 4, 16 and 64 simulated runs.

A run scores the completions of several prompts in one request, as a trainer does in a step, and then pauses as long as
rollouts and a policy update would take. Each run is a separate tenant. Hostile tenants, which `--hostile` adds, score
and generate without a pause at the highest priority, and send again whatever they are refused; the columns are of the
runs alone.

python benchmarks/load.py [--seconds 20] [--hostile 2] [--against CHECKOUT]

--against: the teacher of another checkout too (`git worktree add CHECKOUT COMMIT`), turn by turn.
"""

import argparse
import asyncio
import contextlib
import random
import statistics
import tempfile
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import models
import numpy as np
import yaml
from common import add_against_option, both_teachers, show, uncached_teacher
from vold_client import AsyncTeacherClient, Completion, VoldError
from vold_service.keys import digest_of, new_key

COUNTS = (1, 4, 16, 64)
PROMPTS, GROUP = 4, 8
TURNS = 5
"""Of a comparison of two checkouts."""


@dataclass
class Run:
    """The results of one run. seconds: per request."""

    tokens: int = 0
    rejects: int = 0
    seconds: list[float] = field(default_factory=list)


async def simulate_run(url: str, key: str, run: Run, seed: int, until: float, pause: float) -> None:
    rng, pauses = np.random.default_rng(seed), random.Random(seed)
    async with AsyncTeacherClient(url, api_key=key, retries=0) as teacher:
        await asyncio.sleep(pauses.uniform(0, pause))
        while time.monotonic() < until:
            prompts = [rng.integers(2, 512, 60) for _ in range(PROMPTS)]
            completions = [
                Completion(index // GROUP, rng.integers(2, 512, rng.integers(40, 121)))
                for index in range(PROMPTS * GROUP)
            ]
            start = time.monotonic()
            try:
                await teacher.score(prompts, completions)
                run.tokens += sum(len(completion.ids) for completion in completions)
                run.seconds.append(time.monotonic() - start)
            except VoldError:
                run.rejects += 1
            await asyncio.sleep(pause * pauses.uniform(0.5, 1.5))


async def attack(url: str, key: str, seed: int, until: float) -> None:
    """A hostile tenant: large requests of both kinds, one after another, all at the highest priority."""
    rng = np.random.default_rng(seed)

    async def score(teacher: AsyncTeacherClient) -> None:
        completions = [Completion(0, rng.integers(2, 512, 120)) for _ in range(1024)]
        await teacher.score([rng.integers(2, 512, 60)], completions, priority=1000)

    async def generate(teacher: AsyncTeacherClient) -> None:
        async for _ in teacher.generate([[5, 6]] * 256, max_tokens=100, priority=1000, seed=seed):
            pass

    async def repeat(work: Callable[[AsyncTeacherClient], Awaitable[None]], teacher: AsyncTeacherClient) -> None:
        while time.monotonic() < until:
            try:
                async with asyncio.timeout(until - time.monotonic()):
                    await work(teacher)
            except (VoldError, TimeoutError):
                await asyncio.sleep(0.01)

    async with AsyncTeacherClient(url, api_key=key, retries=0) as teacher:
        await asyncio.gather(*(repeat(work, teacher) for work in (score, score, generate, generate)))


def jain(values: list[int]) -> float:
    """Jain's fairness index: 1 if all values are equal, 1/n if all but one are 0."""
    return sum(values) ** 2 / (len(values) * sum(value**2 for value in values)) if any(values) else 1.0


@dataclass(frozen=True)
class Load:
    """What is sent to a teacher. runs, hostile: their keys. seconds: of a turn. pause: the mean between two steps."""

    runs: Sequence[str]
    hostile: Sequence[str]
    seconds: float
    pause: float

    async def turn(self, url: str, count: int) -> list[Run]:
        """`count` runs at once."""
        runs = [Run() for _ in range(count)]
        until = time.monotonic() + self.seconds
        await asyncio.gather(
            *(
                simulate_run(url, key, run, 1000 * count + seed, until, self.pause)
                for seed, (run, key) in enumerate(zip(runs, self.runs, strict=False))
            ),
            *(attack(url, key, seed, until) for seed, key in enumerate(self.hostile)),
        )
        return runs


def rate(runs: Sequence[Run], spent: float) -> float:
    """Completion tokens a second of all runs together."""
    return sum(run.tokens for run in runs) / spent


def measure(url: str, load: Load, counts: Sequence[int]) -> list[list[str]]:
    rows = []
    for count in counts:
        began = time.monotonic()
        runs = asyncio.run(load.turn(url, count))
        spent = time.monotonic() - began
        seconds = sorted(second for run in runs for second in run.seconds)
        rows.append(
            [
                str(count),
                f"{rate(runs, spent):,.0f}",
                f"{1000 * statistics.median(seconds):.0f}",
                f"{1000 * seconds[int(0.99 * (len(seconds) - 1))]:.0f}",
                f"{jain([run.tokens for run in runs]):.3f}",
                str(sum(run.rejects for run in runs)),
            ]
        )
    return rows


def compare(path: Path, keys: Path, tree: Path, load: Load, counts: Sequence[int]) -> list[list[str]]:
    """TURNS turns of each count, on the services of both checkouts."""
    rows = []
    for count in counts:
        rates: dict[Path | None, list[float]] = {None: [], tree: []}
        fairness: dict[Path | None, list[float]] = {None: [], tree: []}
        for turn in range(TURNS):
            with both_teachers(path, "--api-keys", str(keys), tree=tree, turn=turn) as urls:
                for each, url in urls.items():
                    began = time.monotonic()
                    runs = asyncio.run(load.turn(url, count))
                    rates[each].append(rate(runs, time.monotonic() - began))
                    fairness[each].append(jain([run.tokens for run in runs]))
        ratios = sorted(mine / max(1.0, other) for mine, other in zip(rates[None], rates[tree], strict=True))
        rows.append(
            [
                str(count),
                *(f"{statistics.median(values):,.0f}" for values in rates.values()),
                f"{statistics.median(ratios):.2f}x ({ratios[0]:.2f} to {ratios[-1]:.2f})",
                *(f"{statistics.median(values):.3f}" for values in fairness.values()),
            ]
        )
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=20.0, help="of each turn")
    parser.add_argument("--pause", type=float, default=0.2, help="mean seconds between two steps of a run")
    parser.add_argument("--hostile", type=int, default=0, help="hostile tenants beside the runs")
    parser.add_argument("--runs", type=int, nargs="*", default=COUNTS, help="counts of runs")
    add_against_option(parser)
    options = parser.parse_args()
    names = [f"run-{index}" for index in range(max(options.runs))]
    keys = {name: new_key() for name in [*names, *(f"hostile-{index}" for index in range(options.hostile))]}
    tenants = [{"name": name, "keys": [{"sha256": digest_of(key).hex()}]} for name, key in keys.items()]
    own = [keys[name] for name in names]
    load = Load(own, [key for key in keys.values() if key not in own], options.seconds, options.pause)
    beside = f" beside {options.hostile} hostile tenants" if options.hostile else ""
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
        path, _ = models.save("tiny", Path(folder))
        file = Path(folder) / "keys.yaml"
        file.write_text(yaml.safe_dump({"tenants": tenants}))
        if options.against:
            rows = compare(path, file, options.against.resolve(), load, options.runs)
            columns = ["runs", "here, tok/s", "there, tok/s", "here / there", "fairness (Jain), here", "there"]
            title = f"Bursty runs on the teachers of two checkouts{beside}, medians of {TURNS} alternating turns"
        else:
            here = stack.enter_context(uncached_teacher(path, "--api-keys", str(file)))["grpc"]
            rows = measure(here, load, options.runs)
            columns = ["runs", "completion tok/s", "p50, ms", "p99, ms", "fairness (Jain)", "rejects"]
            title = f"Bursty runs on one teacher of 1 M parameters{beside}, {options.seconds:.0f} s each"
    show(title, columns, rows)


if __name__ == "__main__":
    main()
