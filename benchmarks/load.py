"""The throughput, latency and fairness of a shared teacher with 1, 4, 16 and 64 simulated runs.

A run scores the completions of several prompts in one request, as a trainer does in a step, and then pauses as long as
rollouts and a policy update would take. Each run is a separate tenant. Hostile tenants, which `--hostile` adds, score
and generate without a pause at the highest priority, and send again whatever they are refused; the columns are of the
runs alone.

python benchmarks/load.py [--seconds 20] [--hostile 2]
"""

import argparse
import asyncio
import random
import statistics
import tempfile
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path

import models
import numpy as np
import yaml
from common import show, uncached_teacher
from vold_client import AsyncTeacherClient, Completion, VoldError
from vold_service.keys import digest_of, new_key

COUNTS = (1, 4, 16, 64)
PROMPTS, GROUP = 4, 8


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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=20.0, help="of each count of runs")
    parser.add_argument("--pause", type=float, default=0.2, help="mean seconds between two steps of a run")
    parser.add_argument("--hostile", type=int, default=0, help="hostile tenants beside the runs")
    parser.add_argument("--runs", type=int, nargs="*", default=COUNTS, help="counts of runs")
    options = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        path, _ = models.save("tiny", Path(folder))
        keys = {f"run-{index}": new_key() for index in range(max(options.runs))}
        hostile = {f"hostile-{index}": new_key() for index in range(options.hostile)}
        tenants = [{"name": name, "keys": [{"sha256": digest_of(key).hex()}]} for name, key in (keys | hostile).items()]
        file = Path(folder) / "keys.yaml"
        file.write_text(yaml.safe_dump({"tenants": tenants}))
        with uncached_teacher(path, "--api-keys", str(file)) as urls:
            for count in options.runs:
                runs = [Run() for _ in range(count)]
                began = time.monotonic()

                async def all_runs(
                    runs: list[Run] = runs, count: int = count, until: float = began + options.seconds
                ) -> None:
                    await asyncio.gather(
                        *(
                            simulate_run(urls["grpc"], key, run, 1000 * count + seed, until, options.pause)
                            for seed, (run, key) in enumerate(zip(runs, keys.values(), strict=False))
                        ),
                        *(attack(urls["grpc"], key, seed, until) for seed, key in enumerate(hostile.values())),
                    )

                asyncio.run(all_runs())
                spent = time.monotonic() - began
                seconds = sorted(second for run in runs for second in run.seconds)
                rows.append(
                    [
                        str(count),
                        f"{sum(run.tokens for run in runs) / spent:,.0f}",
                        f"{1000 * statistics.median(seconds):.0f}",
                        f"{1000 * seconds[int(0.99 * (len(seconds) - 1))]:.0f}",
                        f"{jain([run.tokens for run in runs]):.3f}",
                        str(sum(run.rejects for run in runs)),
                    ]
                )
    columns = ["runs", "completion tok/s", "p50, ms", "p99, ms", "fairness (Jain)", "rejects"]
    beside = f" beside {options.hostile} hostile tenants" if options.hostile else ""
    show(f"Bursty runs on one teacher of 1 M parameters{beside}, {options.seconds:.0f} s each", columns, rows)


if __name__ == "__main__":
    main()
