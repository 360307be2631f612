"""Tokens and time saved by computing a group's prompt once: the torch backend with and without shared prompts. Then
what two tenants cost who score the same completions, each with a cache of its own or with one `share_cache`.

python benchmarks/sharing.py [--size tiny]
"""

import argparse
import hashlib
import json
import statistics
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import models
import numpy as np
import torch
from common import POCKET_TEACHER, add_size_option, requests, serving, show
from vold_client import TeacherClient
from vold_teacher.batch import BatchSize, Layout, group_by_prompt
from vold_teacher.types import ScoreOptions, Sequence

ROUNDS = {"deep": 9, "tiny": 9, "40M": 2}
SEQUENCES = {"deep": 64, "tiny": 64, "40M": 16}
"""Sequences of a batch, as a busy service forms it."""
LENGTH = 250
"""Tokens of prompt and completion together."""


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_size_option(arguments, ROUNDS)
    torch.set_num_threads(1)
    rows = []
    for name in arguments.parse_args().size or ROUNDS:
        backend = models.torch_backend(name)
        rng = np.random.default_rng(0)
        for parts in ((4, 1), (1, 1), (1, 4)):
            for group in (4, 8, 16):
                width = LENGTH * parts[0] // sum(parts)
                prompts = [rng.integers(2, 512, width).astype(np.int32) for _ in range(SEQUENCES[name] // group)]
                sequences = [
                    Sequence(prompt, rng.integers(2, 512, LENGTH - width).astype(np.int32), ScoreOptions())
                    for prompt in prompts
                    for _ in range(group)
                ]
                size = BatchSize.of_groups(
                    [sequences[index] for index in members] for members in group_by_prompt(sequences).values()
                )
                info = backend.info
                layouts = (Layout.SEPARATE, info.layout)
                times: dict[Layout, list[float]] = {layout: [] for layout in layouts}
                for round_index in range(ROUNDS[name] + 1):
                    for layout in layouts:
                        backend.info = replace(info, layout=layout)
                        start = time.perf_counter()
                        backend.score(sequences)
                        if round_index:
                            times[layout].append(time.perf_counter() - start)
                backend.info = info
                speedup = statistics.median(a / b for a, b in zip(*times.values(), strict=True))
                saved = size.separate_tokens / size.tokens(info.layout)
                rows.append([name, f"{parts[0]}:{parts[1]}", str(group), f"{saved:.2f}x", f"{speedup:.2f}x"])
    columns = ["teacher", "prompt : completion", "group", "fewer tokens", "less time"]
    show(f"A group's prompt computed once, {LENGTH} tokens a sequence, medians", columns, rows)
    show_tenants()


TENANTS = ("maths", "physics")


def show_tenants() -> None:
    work = requests(100, count=8, completions=32, seed=0, group=8)
    rows = []
    for label, more in (("caches of their own", {}), ("share_cache: lab", {"share_cache": "lab"})):
        keys = {name: f"vold_key-of-{name}-for-this-benchmark" for name in TENANTS}
        entries = [
            {"name": name, **more, "keys": [{"sha256": hashlib.sha256(key.encode()).hexdigest()}]}
            for name, key in keys.items()
        ]
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder, "keys.yaml")
            file.write_text(json.dumps({"tenants": entries}))
            with serving("teacher", "--model", str(POCKET_TEACHER), "--api-keys", str(file)) as urls:
                for name in TENANTS:
                    with TeacherClient(urls["grpc"], api_key=keys[name]) as client:
                        start = time.perf_counter()
                        for prompts, completions in work:
                            client.score(prompts, completions)
                        seconds = time.perf_counter() - start
                        (usage,) = client.usage()
                    cost = f"{usage.computed_tokens:,.0f}"
                    rows.append([label, name, f"{usage.cache_hits}", cost, f"{seconds:.2f} s"])
    columns = ["tenants", "in their order", "from the cache", "tokens computed", "time"]
    show("Two tenants score the same completions", columns, rows)


if __name__ == "__main__":
    main()
