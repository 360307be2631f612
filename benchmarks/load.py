"""How a shared teacher behaves as runs are added: 1, 4, 16 and 64 simulated runs with bursty steps.

A run scores a group of completions for each of some prompts all at once, as a trainer does at a step, then pauses for
as long as sampling and an update would take, and begins again. Each run is a tenant of its own.

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
from common import serving, show
from vold_client import AsyncTeacherClient, Completion, VoldError
from vold_service.keys import digest_of, new_key

COUNTS = (1, 4, 16, 64)
PROMPTS, GROUP = 4, 8


@dataclass
class Run:
    """What one run saw. seconds: of each of its steps' requests."""

    tokens: int = 0
    rejects: int = 0
    seconds: list[float] = field(default_factory=list)


async def drive(url: str, key: str, run: Run, seed: int, until: float, pause: float) -> None:
    rng, chance = np.random.default_rng(seed), random.Random(seed)
    async with AsyncTeacherClient(url, api_key=key, retries=0) as teacher:
        await asyncio.sleep(chance.uniform(0, pause))
        while time.monotonic() < until:
            prompts = [rng.integers(2, 512, 60) for _ in range(PROMPTS)]
            asked = [
                Completion(index // GROUP, rng.integers(2, 512, rng.integers(40, 121)))
                for index in range(PROMPTS * GROUP)
            ]
            began = time.monotonic()
            try:
                await teacher.score(prompts, asked)
                run.tokens += sum(len(completion.ids) for completion in asked)
                run.seconds.append(time.monotonic() - began)
            except VoldError:
                run.rejects += 1
            await asyncio.sleep(pause * chance.uniform(0.5, 1.5))


def jain(values: list[int]) -> float:
    """Jain's fairness index: 1 where all have as much, 1/n where one has everything."""
    return sum(values) ** 2 / (len(values) * sum(value**2 for value in values)) if any(values) else 1.0


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--seconds", type=float, default=20.0, help="of each count of runs")
    options.add_argument("--pause", type=float, default=0.2, help="mean seconds between two steps of a run")
    asked = options.parse_args()
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        path, _ = models.save("tiny", Path(folder))
        keys = {f"run-{index}": new_key() for index in range(max(COUNTS))}
        tenants = [{"name": name, "keys": [{"sha256": digest_of(key).hex()}]} for name, key in keys.items()]
        file = Path(folder) / "keys.yaml"
        file.write_text(yaml.safe_dump({"tenants": tenants}))
        with serving(
            "teacher", "--model", str(path), "--threads", "1", "--cache-bytes", "0", "--api-keys", str(file)
        ) as urls:
            for count in COUNTS:
                runs = [Run() for _ in range(count)]
                began = time.monotonic()

                async def all_runs(
                    runs: list[Run] = runs, count: int = count, until: float = began + asked.seconds
                ) -> None:
                    await asyncio.gather(
                        *(
                            drive(urls["grpc"], key, run, 1000 * count + seed, until, asked.pause)
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
    show(f"Bursty runs on one teacher of 1 M parameters, {asked.seconds:.0f} s each", columns, rows)


if __name__ == "__main__":
    main()
