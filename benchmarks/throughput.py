"""The throughput of a saturated service with 8 runs, relative to a bare forward pass of the model in this process, with
the same sequences and torch threads. No two completions share a prompt, so both sides compute the same tokens.

python benchmarks/throughput.py [--size tiny] [--against CHECKOUT]

--against: the service of another checkout (`git worktree add CHECKOUT COMMIT`) in place of the bare forward pass. Turns
alternate, so that other load on the machine meets both alike.
"""

import argparse
import asyncio
import statistics
import tempfile
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import models
import numpy as np
import torch
from common import Requests, add_against_option, add_size_option, both_teachers, requests, show, uncached_teacher
from transformers import AutoModelForCausalLM
from vold_client import AsyncTeacherClient

RUNS = 8
TURNS, PASSES = 7, 4
"""Of a comparison of two checkouts: starts of both, and passes after each start."""
BUDGETS = (1024, 2048, 4096, 16384)
"""Batch sizes of the bare forward, in tokens; the fastest is used, which depends on the machine's caches."""


@dataclass(frozen=True)
class Load:
    """requests: per run and round. completions: per request. threads: of torch, on each side."""

    rounds: int
    requests: int
    completions: int
    threads: int


LOADS = {"sparse": Load(9, 8, 16, 1), "tiny": Load(5, 4, 16, 1), "40M": Load(3, 1, 6, 1)}
"""One thread, so that the wire has the second of two cores."""


def bare_forward(model: torch.nn.Module, all_requests: Requests, budget: int) -> None:
    """Padded forward passes over whole sequences, sorted by length, in batches of at most `budget` tokens."""
    rows = sorted(
        (
            (len(prompts[c.prompt]), np.concatenate([prompts[c.prompt], c.ids]))
            for prompts, cs in all_requests
            for c in cs
        ),
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


def fastest_budget(model: torch.nn.Module, all_requests: Requests) -> int:
    """The fastest of BUDGETS."""

    def seconds(budget: int) -> float:
        start = time.perf_counter()
        bare_forward(model, all_requests, budget)
        return time.perf_counter() - start

    for budget in BUDGETS:
        seconds(budget)
    return min(BUDGETS, key=seconds)


async def score_over_wire(url: str, all_requests: Requests) -> None:
    """Score the requests over the wire: 8 runs with a client each; a run sends its next request after each reply."""
    clients = [AsyncTeacherClient(url, run_id=f"run-{run}") for run in range(RUNS)]

    async def run(client: AsyncTeacherClient, own_requests: Requests) -> None:
        for prompts, completions in own_requests:
            await client.score(prompts, completions)

    await asyncio.gather(*(run(client, all_requests[index::RUNS]) for index, client in enumerate(clients)))
    for client in clients:
        await client.aclose()


async def one_pass(url: str, all_requests: Requests) -> float:
    """Seconds that a service takes for the requests."""
    start = time.perf_counter()
    await score_over_wire(url, all_requests)
    return time.perf_counter() - start


def turn(path: Path, name: str, tree: Path, number: int) -> tuple[int, float, float]:
    """(tokens, seconds here, seconds there) of two services that have just started."""
    load, tokens, seconds = LOADS[name], 0, dict.fromkeys((None, tree), 0.0)
    with both_teachers(path, tree=tree, turn=number, threads=load.threads) as urls:
        for index in range(PASSES + 1):
            seed = number * (PASSES + 1) + index
            all_requests = requests(models.SIZES[name].vocab, RUNS * load.requests, load.completions, seed)
            for each in reversed(urls) if index % 2 else urls:
                passed = asyncio.run(one_pass(urls[each], all_requests))
                seconds[each] += passed if index else 0.0  # the first pass is the warm-up of both
            if index:
                tokens += sum(len(p[c.prompt]) + len(c.ids) for p, cs in all_requests for c in cs)
    return tokens, seconds[None], seconds[tree]


def compare(tree: Path, names: Iterable[str]) -> None:
    """Two services with the same requests, turn by turn."""
    rows = []
    for name in names:
        with tempfile.TemporaryDirectory() as folder:
            path, parameters = models.save(name, Path(folder))
            turns = [turn(path, name, tree, number) for number in range(TURNS)]
        own, other = (
            statistics.median(tokens / (here, there)[side] for tokens, here, there in turns) for side in (0, 1)
        )
        ratios = sorted(there / here for _, here, there in turns)
        rows.append(
            [
                f"{parameters / 1e6:.1f} M",
                f"{own:,.0f}",
                f"{other:,.0f}",
                f"{statistics.median(ratios):.2f}x ({ratios[0]:.2f} to {ratios[-1]:.2f})",
            ]
        )
    show(
        f"Tokens a second of two checkouts' services, {RUNS} runs at once, medians of {TURNS} alternating turns",
        ["teacher", "here, tok/s", "there, tok/s", "here / there"],
        rows,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_size_option(parser, LOADS)
    add_against_option(parser)
    options = parser.parse_args()
    if options.against:
        compare(options.against.resolve(), options.size or LOADS)
        return
    rows = []
    for name in options.size or LOADS:
        load = LOADS[name]
        torch.set_num_threads(load.threads)
        with tempfile.TemporaryDirectory() as folder:
            path, parameters = models.save(name, Path(folder))
            model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).eval()
            vocabulary = models.SIZES[name].vocab
            with uncached_teacher(path, threads=load.threads) as urls, torch.inference_mode():
                times: dict[str, list[float]] = {"bare": [], "service": []}
                budget = fastest_budget(model, requests(vocabulary, RUNS, 4, 0))
                for round_index in range(load.rounds + 1):
                    all_requests = requests(vocabulary, RUNS * load.requests, load.completions, round_index)
                    start = time.perf_counter()
                    bare_forward(model, all_requests, budget)
                    middle = time.perf_counter()
                    asyncio.run(score_over_wire(urls["grpc"], all_requests))
                    if round_index:  # the first round is the warm-up of both
                        times["bare"].append(middle - start)
                        times["service"].append(time.perf_counter() - middle)
                tokens = sum(len(p[c.prompt]) + len(c.ids) for p, cs in all_requests for c in cs)
                service, bare = (statistics.median(times[side]) for side in ("service", "bare"))
                ratios = sorted(b / s for b, s in zip(times["bare"], times["service"], strict=True))
                rows.append(
                    [
                        f"{parameters / 1e6:.1f} M",
                        str(load.threads),
                        f"{tokens / bare:,.0f}",
                        f"{tokens / service:,.0f}",
                        f"{statistics.median(ratios):.2f}x ({ratios[0]:.2f} to {ratios[-1]:.2f})",
                    ]
                )
    columns = ["teacher", "threads", "bare forward, tok/s", "service, tok/s", "service / bare"]
    show(f"Tokens a second, {RUNS} runs at once, medians", columns, rows)


if __name__ == "__main__":
    main()
