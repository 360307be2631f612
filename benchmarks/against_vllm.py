"""A vold teacher against a stock vLLM server, with the same model, sequences and threads.

vLLM is called as trainers call it, through /v1/completions with prompt_logprobs, with one sequence per request and with
8; the faster of the two counts. Both sides end with arrays of the completions' log-probabilities, which must agree.
Several runs send requests concurrently, each the next request after its last reply. First every completion has its own
prompt; then 8 completions share a prompt, which the teacher computes once and vLLM does not, because requests for
log-probabilities bypass its prefix cache. Token counts include the prompt once for each completion, on both sides.
Nothing is cached.

vLLM has a separate environment, made by `make .venv-vllm/.installed`:

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
from common import Ids, Requests, add_size_option, requests, show, uncached_teacher
from vold_client import AsyncTeacherClient
from vold_proto.v1 import teacher_pb2 as pb

ROUNDS = {"sampled token": 5, "top-20": 3}
GROUPS = (1, 8)
TOP_K = {"sampled token": 0, "top-20": 20}
DTYPES = {"sampled token": "f32", "top-20": "f16"}
TOLERANCE = {"f32": 1e-3, "f16": 2e-2}


@dataclass(frozen=True)
class Load:
    """runs: concurrent. requests: per run and round. completions: per request."""

    runs: int
    requests: int
    completions: int


LOADS = {"sparse": Load(8, 2, 8), "tiny": Load(8, 2, 8), "40M": Load(2, 1, 8)}


@contextlib.contextmanager
def stock_vllm(python: str, model: Path, threads: int) -> Iterator[str]:
    """The URL of `vllm serve` on a free port, with settings that limit its memory on a CPU."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
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


async def from_vllm(
    url: str, all_requests: Requests, runs: int, top_k: int, batch: int
) -> tuple[list[np.ndarray], int]:
    """The completions' log-probabilities in order, and the bytes of vLLM's replies."""
    received = 0

    async def score(client: httpx.AsyncClient, part: list[tuple[Ids, Ids]]) -> list[np.ndarray]:
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
                np.array([[(int(key), token["logprob"]) for key, token in entry.items()][:top_k] for entry in entries])
            scores.append(
                np.array([entry[str(key)]["logprob"] for key, entry in zip(ids.tolist(), entries, strict=True)])
            )
        return scores

    async def run(own_requests: Requests) -> list[np.ndarray]:
        async with httpx.AsyncClient(base_url=url, timeout=600) as client:
            scores: list[np.ndarray] = []
            for prompts, completions in own_requests:
                pairs = [(prompts[completion.prompt], completion.ids) for completion in completions]
                parts = [pairs[start : start + batch] for start in range(0, len(pairs), batch)]
                for part_scores in await asyncio.gather(*(score(client, part) for part in parts)):
                    scores += part_scores
            return scores

    scores_by_run = await asyncio.gather(*(run(all_requests[number::runs]) for number in range(runs)))
    return [score for scores in scores_by_run for score in scores], received


async def from_vold(
    url: str, all_requests: Requests, runs: int, top_k: int, dtype: str
) -> tuple[list[np.ndarray], int]:
    """The same from a vold teacher, without the bytes."""

    async def run(own_requests: Requests) -> list[np.ndarray]:
        scores: list[np.ndarray] = []
        async with AsyncTeacherClient(url) as client:
            for prompts, completions in own_requests:
                result = await client.score(prompts, completions, top_k=top_k, dtype=dtype)
                scores += [score.logprobs for score in result.scores]
        return scores

    scores_by_run = await asyncio.gather(*(run(all_requests[number::runs]) for number in range(runs)))
    return [score for scores in scores_by_run for score in scores], 0


def reply_bytes(url: str, all_requests: Requests, top_k: int, dtype: str) -> int:
    """Bytes of the teacher's protobuf replies, as sent over gRPC, and over HTTP as application/x-protobuf."""
    total = 0
    for prompts, completions in all_requests:
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
    for round_index in range(ROUNDS[label] + 1):
        all_requests = requests(
            models.SIZES[name].vocab, load.runs * load.requests, load.completions, round_index, group
        )
        clients = {
            "vold": lambda all_requests=all_requests: from_vold(urls["grpc"], all_requests, load.runs, top_k, dtype),
            "single": lambda all_requests=all_requests: from_vllm(vllm, all_requests, load.runs, top_k, 1),
            "batch": lambda all_requests=all_requests: from_vllm(vllm, all_requests, load.runs, top_k, 8),
        }
        results = {}
        for client, score in clients.items():
            start = time.perf_counter()
            results[client] = asyncio.run(score())
            if round_index:  # the first round is the warm-up
                times[client].append(time.perf_counter() - start)
        for client in ("single", "batch"):
            for vold_scores, vllm_scores in zip(results["vold"][0], results[client][0], strict=True):
                np.testing.assert_allclose(vold_scores, vllm_scores, atol=TOLERANCE[dtype])
    tokens = sum(len(prompts[c.prompt]) + len(c.ids) for prompts, completions in all_requests for c in completions)
    scored = sum(len(completion.ids) for _, completions in all_requests for completion in completions)
    faster = min(("single", "batch"), key=lambda client: statistics.median(times[client]))
    ratios = sorted(b / a for a, b in zip(times["vold"], times[faster], strict=True))
    return [
        f"{name}, {load.runs} runs",
        f"{label}, {dtype}",
        str(group),
        f"{tokens / statistics.median(times['single']):,.0f}",
        f"{tokens / statistics.median(times['batch']):,.0f}",
        f"{tokens / statistics.median(times['vold']):,.0f}",
        f"{statistics.median(ratios):.1f}x ({ratios[0]:.1f} to {ratios[-1]:.1f})",
        f"{results['single'][1] / tokens:.0f}",
        f"{reply_bytes(urls['http'], all_requests, top_k, dtype) / scored:.1f}",
    ]


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--vllm-python", default=".venv-vllm/bin/python", help="a Python that has vLLM")
    arguments.add_argument("--threads", type=int, default=1, help="of the forward pass, on both sides")
    add_size_option(arguments, LOADS)
    options = arguments.parse_args()
    rows = []
    for name in options.size or LOADS:
        with tempfile.TemporaryDirectory() as folder:
            path, _ = models.save(name, Path(folder))
            with (
                stock_vllm(options.vllm_python, path, options.threads) as vllm,
                uncached_teacher(path, threads=options.threads) as urls,
            ):
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
        f"Against vLLM's /v1/completions, {options.threads} thread each, medians",
        columns,
        rows,
    )


if __name__ == "__main__":
    main()
