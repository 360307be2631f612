"""A vold teacher against a stock vLLM server: the same model, the same sequences, the same threads, one run.

vLLM is asked the way trainers ask it, through /v1/completions with prompt_logprobs: a request for each sequence, and
8 sequences a request; the faster of the two counts. Both sides end with arrays of the completions' log-probabilities,
which must agree. Several runs ask at once, each with its next request on the reply to its last: first for completions
with prompts of their own, then for groups of 8, which the teacher computes with their prompt once and vLLM does not,
for requests for log-probabilities pass by its prefix cache. Tokens are those of prompts and completions, a prompt
counted for each of its completions, on both sides. Nothing is cached.

vLLM lives in an environment of its own, which `make .venv-vllm/.installed` makes:

python benchmarks/against_vllm.py [--vllm-python .venv-vllm/bin/python] [--size tiny] [--threads 1]
"""

import argparse
import asyncio
import contextlib
import itertools
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import models
import numpy as np
from common import Ids, requests, serving, show, sizes
from vold_client import AsyncTeacherClient, Completion
from vold_proto.v1 import teacher_pb2 as pb

ROUNDS = {"sampled token": 5, "top-20": 3}
GROUPS = (1, 8)
TOP_K = {"sampled token": 0, "top-20": 20}
DTYPES = {"sampled token": "f32", "top-20": "f16"}
TOLERANCE = {"f32": 1e-3, "f16": 2e-2}


@dataclass(frozen=True)
class Load:
    """runs: at once. requests: that each run makes in a round. completions: of a request."""

    runs: int
    requests: int
    completions: int


LOADS = {"sparse": Load(8, 2, 8), "tiny": Load(8, 2, 8), "40M": Load(2, 1, 8)}

Asked = list[tuple[list[Ids], list[Completion]]]


@contextlib.contextmanager
def stock_vllm(python: str, model: Path, threads: int) -> Iterator[str]:
    """`vllm serve` on a free port, with memory held down as a CPU needs it."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [python, "-m", "vllm.entrypoints.openai.api_server", "--model", str(model), "--served-model-name", "m"]
    command += ["--host", "127.0.0.1", "--port", str(port), "--dtype", "float32", "--enforce-eager"]
    command += ["--gpu-memory-utilization", "0.25", "--max-model-len", "1024"]
    settings = {
        "VLLM_CPU_KVCACHE_SPACE": "1",
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",
        "OMP_NUM_THREADS": str(threads),
        "VLLM_NO_USAGE_STATS": "1",
    }
    server = subprocess.Popen(
        command, env={**os.environ, **settings}, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    url = f"http://127.0.0.1:{port}"
    try:
        for _ in range(600):
            if server.poll() is not None:
                raise SystemExit(f"vLLM did not start: run {' '.join(command)}")
            with contextlib.suppress(httpx.HTTPError):
                if httpx.get(f"{url}/health").status_code == 200:
                    break
            time.sleep(1)
        yield url
    finally:
        server.terminate()
        server.wait()


async def from_vllm(url: str, asked: Asked, runs: int, top_k: int, batch: int) -> tuple[list[np.ndarray], int]:
    """The completions' log-probabilities in order, and the bytes of the replies."""
    received = 0

    async def ask(client: httpx.AsyncClient, part: list[tuple[Ids, Ids]]) -> list[np.ndarray]:
        nonlocal received
        body = {
            "model": "m",
            "prompt": [np.concatenate(pair).tolist() for pair in part],
            "max_tokens": 1,
            "temperature": 0,
            "prompt_logprobs": top_k,
        }
        reply = (await client.post("/v1/completions", json=body)).raise_for_status()
        received += len(reply.content)
        scores = []
        for (prompt, ids), choice in zip(part, reply.json()["choices"], strict=True):
            entries = choice["prompt_logprobs"][len(prompt) :]
            if top_k:  # a trainer needs the ids and the log-probabilities of the top-k as arrays
                np.array([[(int(key), one["logprob"]) for key, one in entry.items()][:top_k] for entry in entries])
            scores.append(
                np.array([entry[str(key)]["logprob"] for key, entry in zip(ids.tolist(), entries, strict=True)])
            )
        return scores

    async def run(mine: Asked) -> list[np.ndarray]:
        async with httpx.AsyncClient(base_url=url, timeout=600) as client:
            scores: list[np.ndarray] = []
            for prompts, completions in mine:
                pairs = [(prompts[completion.prompt], completion.ids) for completion in completions]
                parts = [pairs[start : start + batch] for start in range(0, len(pairs), batch)]
                for found in await asyncio.gather(*(ask(client, part) for part in parts)):
                    scores += found
            return scores

    found = await asyncio.gather(*(run(asked[number::runs]) for number in range(runs)))
    return [score for scores in found for score in scores], received


async def from_vold(url: str, asked: Asked, runs: int, top_k: int, dtype: str) -> tuple[list[np.ndarray], int]:
    """The same of a vold teacher."""

    async def run(mine: Asked) -> list[np.ndarray]:
        scores: list[np.ndarray] = []
        async with AsyncTeacherClient(url) as client:
            for prompts, completions in mine:
                found = await client.score(prompts, completions, top_k=top_k, dtype=dtype)
                scores += [score.logprobs for score in found.scores]
        return scores

    found = await asyncio.gather(*(run(asked[number::runs]) for number in range(runs)))
    return [score for scores in found for score in scores], 0


def reply_bytes(url: str, asked: Asked, top_k: int, dtype: str) -> int:
    """Of the packed replies: what gRPC carries, and HTTP as application/x-protobuf."""
    total = 0
    for prompts, completions in asked:
        message = pb.ScoreRequest(
            prompts=[pb.Prompt(ids=np.asarray(ids, "<i4").tobytes()) for ids in prompts],
            completions=[
                pb.Completion(prompt=completion.prompt, ids=np.asarray(completion.ids, "<i4").tobytes())
                for completion in completions
            ],
            options=pb.ScoreOptions(top_k=top_k, dtype=pb.DType.Value(dtype.upper())),
        )
        headers = {"content-type": "application/x-protobuf"}
        reply = httpx.post(f"{url}/v1/score", content=message.SerializeToString(), headers=headers, timeout=600)
        total += len(reply.raise_for_status().content)
    return total


def measure(name: str, label: str, group: int, urls: dict[str, str], vllm: str) -> list[str]:
    """One row of the table."""
    load, top_k, dtype = LOADS[name], TOP_K[label], DTYPES[label]
    times: dict[str, list[float]] = {"vold": [], "single": [], "batch": []}
    for turn in range(ROUNDS[label] + 1):
        asked = requests(models.SIZES[name].vocab, load.runs * load.requests, load.completions, turn, group)
        ways = {
            "vold": lambda asked=asked: from_vold(urls["grpc"], asked, load.runs, top_k, dtype),
            "single": lambda asked=asked: from_vllm(vllm, asked, load.runs, top_k, 1),
            "batch": lambda asked=asked: from_vllm(vllm, asked, load.runs, top_k, 8),
        }
        found = {}
        for way, ask in ways.items():
            began = time.perf_counter()
            found[way] = asyncio.run(ask())
            if turn:  # the first warms everything up
                times[way].append(time.perf_counter() - began)
        for way in ("single", "batch"):
            for ours, theirs in zip(found["vold"][0], found[way][0], strict=True):
                np.testing.assert_allclose(ours, theirs, atol=TOLERANCE[dtype])
    tokens = sum(len(prompts[c.prompt]) + len(c.ids) for prompts, completions in asked for c in completions)
    scored = sum(len(completion.ids) for _, completions in asked for completion in completions)
    theirs = min(("single", "batch"), key=lambda way: statistics.median(times[way]))
    ratios = sorted(b / a for a, b in zip(times["vold"], times[theirs], strict=True))
    return [
        f"{name}, {load.runs} runs",
        f"{label}, {dtype}",
        str(group),
        f"{tokens / statistics.median(times['single']):,.0f}",
        f"{tokens / statistics.median(times['batch']):,.0f}",
        f"{tokens / statistics.median(times['vold']):,.0f}",
        f"{statistics.median(ratios):.1f}x ({ratios[0]:.1f} to {ratios[-1]:.1f})",
        f"{found['single'][1] / tokens:.0f}",
        f"{reply_bytes(urls['http'], asked, top_k, dtype) / scored:.1f}",
    ]


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--vllm-python", default=".venv-vllm/bin/python", help="a Python that has vLLM")
    arguments.add_argument("--threads", type=int, default=1, help="of the forward pass, on both sides")
    sizes(arguments, LOADS)
    asked = arguments.parse_args()
    rows = []
    for name in asked.size or LOADS:
        with tempfile.TemporaryDirectory() as folder:
            path, _ = models.save(name, Path(folder))
            options = ("--model", str(path), "--threads", str(asked.threads), "--cache-bytes", "0")
            with stock_vllm(asked.vllm_python, path, asked.threads) as vllm, serving("teacher", *options) as urls:
                for label, group in itertools.product(TOP_K, GROUPS):
                    rows.append(measure(name, label, group, urls, vllm))
                    print(*rows[-1], sep="  ", file=sys.stderr)
    columns = [
        "teacher",
        "asked for",
        "group",
        "vLLM, a sequence a request, tok/s",
        "vLLM, 8 a request, tok/s",
        "vold, tok/s",
        "vold / the faster vLLM",
        "vLLM, bytes a token",
        "vold, bytes a token",
    ]
    show(
        f"Against vLLM's /v1/completions, {asked.threads} thread each, medians",
        columns,
        rows,
    )


if __name__ == "__main__":
    main()
