"""The teacher: scoring by the torch backend, beside a bare forward pass and behind gRPC, and where the time goes."""

import asyncio
import contextlib
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from vold_teacher.backends.decoding import DecoderLimits
from vold_teacher.backends.torch import TorchBackend
from vold_teacher.scoring import score_rows
from vold_teacher.types import ScoreOptions, Sequence

from gpu_parts import shapes
from gpu_parts.chips import causal_pairs, forward_flops
from gpu_parts.measure import Bench, SkippedError
from gpu_parts.tables import ASKED, ATTENTIONS

RUNS = 8
"""Clients that the service scores for at the same time."""


@dataclass(frozen=True)
class Load:
    """tokens: of a batch, padding not counted. length: of the sequences of `service` and of the parts' times."""

    tokens: int
    length: int


LOADS = {"real": Load(32_768, 2048), "tiny": Load(96, 24)}


def batch(size: str, length: int, group: int, asked: str, seed: int = 0) -> list[Sequence]:
    """At least a group of sequences, and as many as fit into a batch: an eighth of the longest is the prompt, and the
    shortest completion is half as long as the longest.
    """
    rng = np.random.default_rng(seed)
    vocabulary = shapes.SHAPES[size].teacher["vocab_size"]
    prompt = max(1, length // 8)
    longest = length - prompt
    groups = max(1, LOADS[size].tokens // (length * group))
    options = ScoreOptions(top_k=20 if asked == "top-20" else 0)

    def ids(count: int) -> np.ndarray:
        return rng.integers(0, vocabulary, count).astype(np.int32)

    sequences = []
    for _ in range(groups):
        shared = ids(prompt)
        for count in np.linspace(longest // 2, longest, group + 1).astype(int)[1:]:
            candidates = asked == "candidates"
            sequences.append(
                Sequence(
                    shared,
                    ids(count),
                    options,
                    candidates=ids(16 * count) if candidates else None,
                    candidate_counts=np.full(count, 16, np.int32) if candidates else None,
                )
            )
    return sequences


def flops(config: Any, sequences: list[Sequence], *, shared: bool) -> float:
    """Of a forward pass over the sequences; shared: each prompt once."""
    tokens = pairs = 0
    seen: set[bytes] = set()
    for sequence in sequences:
        prompt, rest = len(sequence.prompt), len(sequence.completion) - 1
        if not shared or sequence.prompt.tobytes() not in seen:
            seen.add(sequence.prompt.tobytes())
            tokens, pairs = tokens + prompt, pairs + causal_pairs(prompt)
        tokens, pairs = tokens + rest, pairs + causal_pairs(rest, prompt)
    return forward_flops(config, tokens, pairs, sum(len(sequence.completion) for sequence in sequences))


@torch.inference_mode()
def bare_forward(backend: TorchBackend, sequences: list[Sequence], tokens: int) -> None:
    """Padded passes of the plain model over whole sequences, sorted by length, of about `tokens` tokens, and the
    log-probabilities of the sampled tokens.
    """
    rows = sorted(sequences, key=lambda sequence: sequence.length)
    while rows:
        count = max(1, tokens // rows[-1].length)
        part, rows = rows[-count:], rows[:-count]
        ids_BS = np.zeros((len(part), part[-1].length), np.int64)
        for row, one in enumerate(part):
            ids_BS[row, : one.length] = np.concatenate([one.prompt, one.completion[:-1]])
        on_device = torch.from_numpy(ids_BS).to(backend.device)
        hidden_BSH = backend.model.base_model(input_ids=on_device, use_cache=False).last_hidden_state
        states = [hidden_BSH[row, len(one.prompt) - 1 : one.length] for row, one in enumerate(part)]
        targets_R = torch.from_numpy(np.concatenate([one.completion for one in part]).astype(np.int64))
        temperature_R = torch.ones(len(targets_R), device=backend.device)
        score_rows(
            torch.cat(states),
            backend.head,
            targets_R.to(backend.device),
            temperature_R=temperature_R,
            rows=backend.rows,
        ).logprobs.cpu()


def make_backend(bench: Bench, folder: Path, model: Any, attention: str) -> TorchBackend:
    """Raises SkippedError if that attention is not there."""
    model.set_attn_implementation("sdpa")  # as it was made, whatever a backend before has set
    try:
        return TorchBackend(folder, device=bench.device.type, attention=attention, limits=DecoderLimits(), model=model)
    except OSError as error:
        raise SkippedError(str(error)) from error


def run(bench: Bench) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = shapes.teacher_folder(bench.size, Path(folder))
        bench.say("making random weights")
        model = shapes.teacher_model(bench.size, bench.device)
        for attention in ATTENTIONS:
            bench.together(*(("places", key) for key in bench.rows("places") if key[0] == attention))
            measure_attention(bench, path, model, attention)


def measure_attention(bench: Bench, path: Path, model: Any, attention: str) -> None:
    """All tables with one attention. One that cannot be had is written so in each of its rows."""
    own = {
        table: [key for key in bench.rows(table) if key[0] == attention] for table in ("scoring", "service", "places")
    }
    try:
        backend = make_backend(bench, path, model, attention)
    except SkippedError as error:
        for table, keys in own.items():
            for key in keys:
                bench.skip(table, key, str(error))
        bench.say(f"attention {attention}: not run: {error}")
        return
    length, largest = LOADS[bench.size].length, max(int(key[1]) for key in own["service"])
    left = bench.left("scoring", own["scoring"])
    for key in left:
        _, tokens, group, asked = key
        sequences = batch(bench.size, int(tokens), int(group), asked)
        bench.row("scoring", key, lambda sequences=sequences: scoring(bench, backend, sequences))
    sequences = batch(bench.size, length, largest, ASKED[1])
    if left:
        bench.profile(f"Teacher: one batch, attention {attention}", lambda: backend.score(sequences))
    if attention == ATTENTIONS[0]:
        measure_head(bench, backend, sequences)
    if not bench.left("service", own["service"]) + bench.left("places", own["places"]):
        return
    with contextlib.ExitStack() as stack:
        service: Service | str
        try:
            service = stack.enter_context(serving(bench, path, attention))
        except SkippedError as error:
            service = str(error)
        for key in own["service"]:
            sequences = batch(bench.size, length, int(key[1]), ASKED[0])
            bench.row("service", key, lambda sequences=sequences: beside_service(bench, backend, service, sequences))
        sequences = batch(bench.size, length, largest, ASKED[0])
        measure_places(bench, backend, service, own["places"], sequences)


def scoring(bench: Bench, backend: TorchBackend, sequences: list[Sequence]) -> dict[str, Any]:
    scored = backend.score(sequences)
    weights = bench.allocated()
    bench.begin_peak()
    seconds = bench.seconds(lambda: backend.score(sequences))
    shared = scored.real_tokens < sum(sequence.length for sequence in sequences)
    return {
        "layout": backend.info.layout.value,
        "tokens_s": scored.real_tokens / seconds,
        "peak_share": bench.share(flops(backend.model.config, sequences, shared=shared), seconds),
        "above_gib": bench.peak_gib(weights),
    }


def measure_head(bench: Bench, backend: TorchBackend, sequences: list[Sequence]) -> None:
    config, before = backend.model.config, backend.rows
    rows = sum(len(sequence.completion) for sequence in sequences)
    generator = torch.Generator(bench.device).manual_seed(0)
    hidden_RH = torch.randn(rows, config.hidden_size, device=bench.device, generator=generator).to(backend.model.dtype)

    def head(mebibytes: int) -> dict[str, Any]:
        backend.rows = max(1, (mebibytes << 20) // (4 * config.vocab_size))
        weights = bench.allocated()
        bench.begin_peak()
        seconds = bench.seconds(lambda: backend._scores(hidden_RH, sequences))
        return {"rows": backend.rows, "seconds": seconds, "above_gib": bench.peak_gib(weights)}

    with torch.inference_mode():
        for key in bench.rows("head"):
            bench.row("head", key, lambda key=key: head(int(key[0])))
    backend.rows = before


@dataclass
class Service:
    """A running service, called as 8 runs would call it."""

    url: str

    def seconds(self, sequences: list[Sequence]) -> float:
        """Of scoring the sequences once, a group a request, spread over the runs."""
        from vold_client import AsyncTeacherClient, Completion

        groups: dict[bytes, list[Sequence]] = {}
        for sequence in sequences:
            groups.setdefault(sequence.prompt.tobytes(), []).append(sequence)
        requests = [
            ([group[0].prompt], [Completion(0, sequence.completion) for sequence in group]) for group in groups.values()
        ]

        async def score() -> float:
            clients = [AsyncTeacherClient(self.url, run_id=f"run-{index}") for index in range(RUNS)]
            for client in clients:
                await client.info()
            start = time.perf_counter()
            replies = [clients[index % RUNS].score(*request) for index, request in enumerate(requests)]
            scores = [score for reply in await asyncio.gather(*replies) for score in reply.scores]
            seconds = time.perf_counter() - start
            for client in clients:
                await client.aclose()
            failed = next((score.error for score in scores if score.error is not None), None)
            if failed is not None:
                raise failed
            return seconds

        return asyncio.run(score())


@contextlib.contextmanager
def serving(bench: Bench, path: Path, attention: str, *options: str) -> Iterator[Service]:
    """A teacher in a process of its own, with weights of its own. Raises SkippedError if it does not start, with the
    last line that it wrote.
    """
    if bench.late:
        raise SkippedError("out of time")
    if bench.cuda:
        free, _ = torch.cuda.mem_get_info(bench.device)
        if bench.allocated() and free < 1.5 * bench.allocated():
            raise SkippedError("the device has no room for the weights of a service beside those in this process")
        bench.free()
    arguments = [bench.size, bench.device.type, attention, str(path), "--grpc", "127.0.0.1:0", "--cache-bytes", "0"]
    limit = max(LOADS[bench.size].tokens, 16_384)
    arguments += ["--max-batch-tokens", str(limit), "--log-level", "warning", *options]
    program = [sys.executable, str(Path(__file__).with_name("serving.py")), *arguments]
    with tempfile.TemporaryFile("w+") as errors:
        process = subprocess.Popen(program, stdout=subprocess.PIPE, stderr=errors, text=True)
        try:
            line = process.stdout.readline() if process.stdout else ""
            if not line:
                process.wait(30)
                errors.seek(0)
                last = [text for text in errors.read().splitlines() if text.strip()][-1:]
                raise SkippedError(f"the service did not start: {''.join(last)}"[:200])
            bench.say(f"a service with attention {attention} is up")
            yield Service(f"grpc://{json.loads(line)['grpc']}")
        finally:
            process.terminate()
            process.wait()


def beside_service(
    bench: Bench, backend: TorchBackend, service: Service | str, sequences: list[Sequence]
) -> dict[str, Any]:
    tokens = LOADS[bench.size].tokens
    times: dict[str, Callable[[], float]] = {
        "bare_s": lambda: bench.once(lambda: bare_forward(backend, sequences, tokens)),
        "backend_s": lambda: bench.once(lambda: backend.score(sequences)),
    }
    if isinstance(service, Service):
        times["service_s"] = lambda: service.seconds(sequences)
    taken: dict[str, list[float]] = {name: [] for name in times}
    for index in range(bench.repeats + 1):  # in turn, so that the chip's clock is the same for all
        for name, measured in times.items():
            seconds = measured()
            if index:
                taken[name].append(seconds)
    best: dict[str, Any] = {name: float(np.median(values)) for name, values in taken.items()}
    return {**best, "ratio": best["bare_s"] / best["service_s"] if "service_s" in best else None}


def measure_places(
    bench: Bench, backend: TorchBackend, service: Service | str, keys: list[tuple[str, ...]], sequences: list[Sequence]
) -> None:
    """The times of the backend's parts, each until the device is done; what is left of a batch is the host's. The wire
    is what the service takes longer than the backend alone.
    """
    spent = {"layers": 0.0, "head": 0.0}

    def timed(name: str, work: Callable[..., Any]) -> Callable[..., Any]:
        def run(*arguments: Any) -> Any:
            found: list[Any] = []
            spent[name] += bench.once(lambda: found.append(work(*arguments)))
            return found[0]

        return run

    def measured() -> dict[str, float | str]:
        backend.score(sequences)
        own = vars(backend)
        own["_states"], own["_scores"] = timed("layers", backend._states), timed("head", backend._scores)
        try:
            whole = bench.once(lambda: backend.score(sequences))
        finally:
            del own["_states"], own["_scores"]
        host = whole - spent["layers"] - spent["head"]
        wire: float | str = service if isinstance(service, str) else 0.0
        if isinstance(service, Service):
            alone = bench.seconds(lambda: backend.score(sequences))
            service.seconds(sequences)
            wire = max(0.0, float(np.median([service.seconds(sequences) for _ in range(bench.repeats)])) - alone)
        return {"layers": spent["layers"], "head": spent["head"], "packing and copies": host, "wire": wire}

    found: dict[str, float | str] = {}
    for key in keys:

        def value(name: str = key[1]) -> dict[str, float]:
            if not found:
                found.update(measured())
            seconds = found[name]
            if isinstance(seconds, str):
                raise SkippedError(seconds)
            return {"seconds": seconds, "share": seconds / sum(s for s in found.values() if isinstance(s, float))}

        bench.row("places", key, value)
