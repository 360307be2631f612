"""Shared by the benchmarks: services, sequences to score, and tables."""

import argparse
import contextlib
import json
import os
import subprocess
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table
from vold_client import Completion
from vold_trainer.pocket.shipped import checkpoint_path

Ids = NDArray[np.int64]
Requests = list[tuple[list[Ids], list[Completion]]]
"""(prompts, completions) of each request."""
POCKET_TEACHER = checkpoint_path("teacher")


ROOT = Path(__file__).parent.parent
PACKAGES = ("proto", "packing", "client", "services/common", "services/teacher", "services/verifier", "trainer")


def environment_of(tree: Path | None) -> dict[str, str]:
    """The environment in which Python imports the packages of another checkout, or of this one.

    Both by their folders: an editable install finds them by a hook, which makes a start slower. Bytecode is kept, as it
    is for a user: otherwise each start compiles every module.
    """
    folders = os.pathsep.join(str((tree or ROOT) / name) for name in PACKAGES)
    return {**os.environ, "PYTHONPATH": folders, "PYTHONDONTWRITEBYTECODE": ""}


@contextlib.contextmanager
def serving(service: str, *arguments: str, tree: Path | None = None) -> Iterator[dict[str, str]]:
    """A service on free ports; yields its URLs as {"grpc", "http"}. tree: another checkout, whose service it is."""
    process = subprocess.Popen(
        [
            sys.executable,
            "-m",
            f"vold_{service}",
            "serve",
            "--http",
            "127.0.0.1:0",
            "--grpc",
            "127.0.0.1:0",
            *arguments,
        ],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        env=environment_of(tree),
    )
    try:
        ready = json.loads(process.stdout.readline())
        yield {"grpc": f"grpc://{ready['grpc']}", "http": ready["http"]}
    finally:
        process.terminate()
        process.wait()


def uncached_teacher(
    model: Path, *arguments: str, threads: int = 1, tree: Path | None = None
) -> contextlib.AbstractContextManager[dict[str, str]]:
    """As `serving`: a teacher that computes every score, with that many threads of torch."""
    options = ("--model", str(model), "--threads", str(threads), "--cache-bytes", "0")
    return serving("teacher", *options, *arguments, tree=tree)


@contextlib.contextmanager
def both_teachers(
    model: Path, *arguments: str, tree: Path, turn: int, threads: int = 1
) -> Iterator[dict[Path | None, str]]:
    """This checkout's uncached teacher and another's, just started: URLs by tree, of which None is this checkout.

    The order alternates from turn to turn. Where a process happens to lie in memory alone makes it up to 5 % slower
    than a copy of itself, for as long as it runs.
    """
    with contextlib.ExitStack() as services:
        yield {
            each: services.enter_context(uncached_teacher(model, *arguments, threads=threads, tree=each))["grpc"]
            for each in ((None, tree) if turn % 2 else (tree, None))
        }


def add_against_option(parser: argparse.ArgumentParser) -> None:
    """Add --against, for a comparison of this checkout's service with another's in one run."""
    parser.add_argument("--against", type=Path, metavar="CHECKOUT", help="compare with the service of another checkout")


def sequences(
    vocabulary: int, prompts: int, group: int, prompt: int, completion: int, seed: int = 0
) -> tuple[list[Ids], list[tuple[int, Ids]]]:
    """Random prompts, and completions as (prompt index, ids), of between `completion` // 2 and `completion` ids."""
    rng = np.random.default_rng(seed)
    prompt_ids = [rng.integers(0, vocabulary, prompt) for _ in range(prompts)]
    lengths = rng.integers(completion // 2, completion + 1, prompts * group)
    return prompt_ids, [(index // group, rng.integers(0, vocabulary, length)) for index, length in enumerate(lengths)]


def requests(vocabulary: int, count: int, completions: int, seed: int, group: int = 1) -> Requests:
    """`count` requests of `completions` completions of 50 to 200 tokens, `group` per prompt of 40 to 160 tokens."""
    rng = np.random.default_rng(seed)

    def request() -> tuple[list[Ids], list[Completion]]:
        prompts = [rng.integers(2, vocabulary, rng.integers(40, 161)) for _ in range(completions // group)]
        ids = (rng.integers(2, vocabulary, rng.integers(50, 201)) for _ in range(completions))
        return prompts, [Completion(index // group, completion) for index, completion in enumerate(ids)]

    return [request() for _ in range(count)]


def add_size_option(parser: argparse.ArgumentParser, names: Iterable[str]) -> None:
    """Add a repeatable option --size that selects models; without it, all of them run."""
    names = tuple(names)
    parser.add_argument("--size", action="append", choices=names, help=f"one of {', '.join(names)}; repeatable")


def show(title: str, columns: list[str], rows: list[list[str]]) -> None:
    """Print the table to the terminal, and as markdown to stdout for benchmarks/README.md."""
    table = Table(*columns, title=title)
    for row in rows:
        table.add_row(*row)
    Console(stderr=True).print(table)
    print(f"\n### {title}\n\n| {' | '.join(columns)} |\n|{'---|' * len(columns)}")
    for row in rows:
        print(f"| {' | '.join(row)} |")
