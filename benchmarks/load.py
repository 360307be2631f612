"""The throughput, latency and fairness of a shared teacher with 1, 4, 16 and 64 simulated runs.

A run scores the completions of several prompts in one request, as a trainer does in a step, and then pauses as long as
rollouts and a policy update would take. Each run is a separate tenant.

python benchmarks/load.py [--seconds 20]
"""

import argparse
import asyncio
import random
import statistics
import tempfile
import time
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


def jain(values: list[int]) -> float:
    """Jain's fairness index: 1 if all values are equal, 1/n if all but one are 0."""
    return sum(values) ** 2 / (len(values) * sum(value**2 for value in values)) if any(values) else 1.0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=20.0, help="of each count of runs")
    parser.add_argument("--pause", type=float, default=0.2, help="mean seconds between two steps of a run")
    options = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        path, _ = models.save("tiny", Path(folder))
        keys = {f"run-{index}": new_key() for index in range(max(COUNTS))}
        tenants = [{"name": name, "keys": [{"sha256": digest_of(key).hex()}]} for name, key in keys.items()]
        file = Path(folder) / "keys.yaml"
        file.write_text(yaml.safe_dump({"tenants": tenants}))
        with uncached_teacher(path, "--api-keys", str(file)) as urls:
            for count in COUNTS:
                runs = [Run() for _ in range(count)]
                began = time.monotonic()

                async def all_runs(
                    runs: list[Run] = runs, count: int = count, until: float = began + options.seconds
                ) -> None:
                    await asyncio.gather(
                        *(
                            simulate_run(urls["grpc"], key, run, 1000 * count + seed, until, options.pause)
                            for seed, (run, key) in enumerate(zip(runs, keys.values(), strict=False))
                        )
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
    show(f"Bursty runs on one teacher of 1 M parameters, {options.seconds:.0f} s each", columns, rows)


if __name__ == "__main__":
    main()
