"""The price of `student.head_dtype: float32`: seconds, peak memory and errors of a pass, both ways.

python benchmarks/head.py

Float32 weights and bfloat16 products (autocast), as with `student.compute: bfloat16`, at Qwen2.5's vocabulary; hidden
states of random directions whose logits reach as far as a trained model's. A pass is log-probabilities and their
gradient, with the logits of each chunk computed again in the backward pass. The whole model is a small one with the
same head, whose layers take a smaller share than a real one's: the price of a pass is an upper bound. On a GPU, if
there is one; otherwise on one thread of the CPU. The second table shows what the size of a chunk changes.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from common import show
from torch import nn
from torch.profiler import ProfilerActivity, profile
from transformers import Qwen3Config, Qwen3ForCausalLM
from vold_trainer.student.logprobs import chunk_bytes, token_logprobs
from vold_trainer.student.models import CompletionScorer, _autocast, compute_head_in_float32

VOCABULARY = 151_936
MIB = 1 << 20
LARGEST_LOGIT = 25.0
"""Of a trained model: bfloat16 logits between 16 and 32 are multiples of 0.125."""


def peak_bytes(work: Callable[[], object], device: torch.device) -> int:
    """The most that is allocated at once while `work` runs, above what is there before."""
    if device.type == "cuda":
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        work()
        return torch.cuda.max_memory_allocated() - before
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiled:
        work()
    events = [event for event in profiled.profiler.kineto_results.events() if event.name() == "[memory]"]
    return int(np.cumsum([event.nbytes() for event in sorted(events, key=lambda event: event.start_ns())]).max())


def seconds(work: Callable[[], object], device: torch.device, turns: int) -> float:
    """The least of some turns. On the CPU of this thread alone, so that other processes do not count."""
    clock = time.perf_counter if device.type == "cuda" else time.process_time
    taken = []
    for _ in range(turns):
        started = clock()
        work()
        if device.type == "cuda":
            torch.cuda.synchronize()
        taken.append(clock() - started)
    return min(taken)


def make_model(hidden: int, head: str | None, device: torch.device) -> Any:
    torch.manual_seed(0)
    config = Qwen3Config(
        hidden_size=hidden, intermediate_size=3 * hidden, num_hidden_layers=4, num_attention_heads=8,
        num_key_value_heads=2, head_dim=64, vocab_size=VOCABULARY, tie_word_embeddings=True,
    )  # fmt: skip
    model = Qwen3ForCausalLM(config).to(device).train()
    _autocast(model, torch.bfloat16)
    if head is not None:
        compute_head_in_float32(model)
    return model


def head_pass(model: Any, hidden_NH: torch.Tensor, ids_N: torch.Tensor, chunk: int) -> torch.Tensor:
    scores = token_logprobs(hidden_NH, model.get_output_embeddings(), ids_N, chunk=chunk)
    scores.logprobs_N.mean().backward()
    return scores.logprobs_N.detach()


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--tokens", type=int, default=256)
    arguments.add_argument("--hidden", type=int, default=128)
    arguments.add_argument("--turns", type=int, default=2)
    options = arguments.parse_args()
    torch.set_num_threads(1)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    tokens, hidden = options.tokens, options.hidden
    generator = torch.Generator().manual_seed(0)
    direction_NH = nn.functional.normalize(torch.randn(tokens, hidden, generator=generator), dim=-1)
    ids_N = torch.randint(0, VOCABULARY, (tokens,), generator=generator).to(device)
    chunk = chunk_bytes(device) // (4 * VOCABULARY)
    rows, by_chunk = [], {}
    for label, head in (("bfloat16", None), ("float32", "float32")):
        model = make_model(hidden, head, device)
        weight_VH = model.get_output_embeddings().weight.detach()
        scale = LARGEST_LOGIT / (direction_NH.to(device) @ weight_VH.T).max()
        hidden_NH = (scale * direction_NH.to(device)).requires_grad_()
        work = lambda model=model, states=hidden_NH: head_pass(model, states, ids_N, chunk)  # noqa: E731
        found_N = work()
        exact_NV = hidden_NH.detach().double() @ weight_VH.double().T
        exact_N = exact_NV.gather(-1, ids_N.unsqueeze(-1)).squeeze(-1) - exact_NV.logsumexp(-1)
        error_N = (found_N.double() - exact_N).abs()
        del exact_NV
        scorer = CompletionScorer(model)
        batch = {"input_ids": ids_N.unsqueeze(0), "attention_mask": torch.ones_like(ids_N).unsqueeze(0)}
        everywhere = torch.ones_like(ids_N, dtype=torch.bool).unsqueeze(0)
        whole = lambda scorer=scorer, batch=batch, mask=everywhere: (  # noqa: E731
            scorer(batch, mask, ids_N).logprobs_N.mean().backward()
        )
        whole()
        rows.append(
            [
                label,
                f"{seconds(work, device, options.turns):.2f} s",
                f"{peak_bytes(work, device) / MIB:.0f} MiB",
                f"{seconds(whole, device, options.turns):.2f} s",
                f"{peak_bytes(whole, device) / MIB:.0f} MiB",
                f"{statistics.mean(error_N.tolist()):.1e}",
                f"{error_N.max().item():.1e}",
            ]
        )
        for size in (16, 64, 256):
            each = max(1, size * MIB // (4 * VOCABULARY))
            part = lambda model=model, states=hidden_NH, each=each: head_pass(model, states, ids_N, each)  # noqa: E731
            by_chunk[label, size] = f"{seconds(part, device, options.turns):.2f} s"
    where = torch.cuda.get_device_name() if device.type == "cuda" else "one thread of the CPU"
    columns = ["head", "head alone", "its peak", "whole pass", "its peak", "mean error, nats", "largest error"]
    show(f"The output head in bfloat16 and float32, {tokens} tokens, hidden size {hidden}, {where}", columns, rows)
    sizes = sorted({size for _, size in by_chunk})
    show(
        "The head alone, by the float32 logits of a chunk",
        ["logits of a chunk", "positions", *dict.fromkeys(label for label, _ in by_chunk)],
        [
            [f"{size} MiB", str(size * MIB // (4 * VOCABULARY)), by_chunk["bfloat16", size], by_chunk["float32", size]]
            for size in sizes
        ],
    )


if __name__ == "__main__":
    main()
