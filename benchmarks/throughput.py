"""What is left of the model's speed when 8 runs share it: the service at saturation against a bare forward in this
process, same sequences, same threads of torch. No completion shares its prompt with another, so that both compute
the same tokens.

python benchmarks/throughput.py [--size tiny]
"""

import argparse
import asyncio
import statistics
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import models
import numpy as np
import torch
from common import Ids, requests, serving, show, sizes
from transformers import AutoModelForCausalLM
from vold_client import AsyncTeacherClient, Completion

RUNS = 8
BUDGETS = (1024, 2048, 4096, 16384)
"""Tokens of a batch of the bare forward: the fastest of these, for a machine's caches have a say in it."""


@dataclass(frozen=True)
class Load:
    """requests: of each run in a round. completions: of each request. threads: of torch, on either side."""

    rounds: int
    requests: int
    completions: int
    threads: int


LOADS = {"sparse": Load(9, 8, 16, 1), "tiny": Load(5, 4, 16, 1), "40M": Load(3, 1, 6, 1)}
"""One thread, so that of two cores the wire has the other."""

Asked = list[tuple[list[Ids], list[Completion]]]


def bare(model: torch.nn.Module, asked: Asked, budget: int) -> None:
    """Padded forwards over whole sequences, sorted by length, in batches of at most `budget` tokens."""
    rows = sorted(
        ((len(prompts[c.prompt]), np.concatenate([prompts[c.prompt], c.ids])) for prompts, cs in asked for c in cs),
        key=lambda row: len(row[1]),
    )
    while rows:
        count = max(1, budget // len(rows[-1][1]))
        part, rows = rows[-count:], rows[:-count]
        width = len(part[-1][1])
        ids = torch.tensor(np.stack([np.pad(row, (0, width - len(row))) for _, row in part]))
        hidden = model.model(ids).last_hidden_state
        for row, (start, whole) in enumerate(part):
            logits = model.lm_head(hidden[row, start - 1 : len(whole) - 1]).float()
            logits.log_softmax(-1).gather(-1, ids[row, start : len(whole), None])


def fastest(model: torch.nn.Module, asked: Asked) -> int:
    """Of BUDGETS."""

    def seconds(budget: int) -> float:
        began = time.perf_counter()
        bare(model, asked, budget)
        return time.perf_counter() - began

    for budget in BUDGETS:
        seconds(budget)
    return min(BUDGETS, key=seconds)


async def through(url: str, asked: Asked) -> None:
    """The same over the wire: 8 runs, each with a client of its own, each sending its next request on a reply."""
    clients = [AsyncTeacherClient(url, run_id=f"run-{run}") for run in range(RUNS)]

    async def run(client: AsyncTeacherClient, mine: Asked) -> None:
        for prompts, completions in mine:
            await client.score(prompts, completions)

    await asyncio.gather(*(run(client, asked[index::RUNS]) for index, client in enumerate(clients)))
    for client in clients:
        await client.aclose()


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    sizes(arguments, LOADS)
    rows = []
    for name in arguments.parse_args().size or LOADS:
        load = LOADS[name]
        torch.set_num_threads(load.threads)
        with tempfile.TemporaryDirectory() as folder:
            path, parameters = models.save(name, Path(folder))
            model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).eval()
            vocabulary = models.SIZES[name].vocab
            options = ("--model", str(path), "--threads", str(load.threads), "--cache-bytes", "0")
            with serving("teacher", *options) as urls, torch.inference_mode():
                times: dict[str, list[float]] = {"bare": [], "service": []}
                budget = fastest(model, requests(vocabulary, RUNS, 4, 0))
                for turn in range(load.rounds + 1):
                    asked = requests(vocabulary, RUNS * load.requests, load.completions, turn)
                    began = time.perf_counter()
                    bare(model, asked, budget)
                    middle = time.perf_counter()
                    asyncio.run(through(urls["grpc"], asked))
                    if turn:  # the first warms both up
                        times["bare"].append(middle - began)
                        times["service"].append(time.perf_counter() - middle)
                tokens = sum(len(p[c.prompt]) + len(c.ids) for p, cs in asked for c in cs)
                ours, theirs = (statistics.median(times[side]) for side in ("service", "bare"))
                ratios = sorted(b / s for b, s in zip(times["bare"], times["service"], strict=True))
                rows.append(
                    [
                        f"{parameters / 1e6:.1f} M",
                        str(load.threads),
                        f"{tokens / theirs:,.0f}",
                        f"{tokens / ours:,.0f}",
                        f"{statistics.median(ratios):.2f}x ({ratios[0]:.2f} to {ratios[-1]:.2f})",
                    ]
                )
    columns = ["teacher", "threads", "bare forward, tok/s", "service, tok/s", "service / bare"]
    show(f"Tokens a second, {RUNS} runs at once, medians", columns, rows)


if __name__ == "__main__":
    main()
