"""The memory that `vold check` expects of a training run, beside what torch allocates, and at the paper's size.

python benchmarks/training_memory.py

Small random models are measured on the CPU with torch's profiler: the peak above weights, gradients and moments. "Model
and cache alone" counts weights, gradients, moments, activations in one dtype, three chunks of logits, and a cache in
the dtype of the weights.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from common import show
from torch.profiler import ProfilerActivity, profile
from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration, Qwen3Config, Qwen3ForCausalLM
from vold_trainer.checking.memory import MemoryEstimate, ModelSize, estimate_memory
from vold_trainer.student.decoder import Decoder
from vold_trainer.student.logprobs import LOGIT_BYTES
from vold_trainer.student.models import CompletionScorer, _autocast, checkpoint_activations
from vold_trainer.student.parts import freeze

GIB, MIB = 1 << 30, 1 << 20
PAPER = {"tokens": 8192 + 300, "micro_batch": 1, "generation_batch": 40, "checkpointing": True}
"""configs/vold_qwen2.5vl_3b.yaml with prompts of up to 300 tokens."""


def alone(model: ModelSize, *, tokens: int, micro_batch: int, generation_batch: int, checkpointing: bool) -> Any:
    """(generation, micro-batch) above weights and moments, and above gradients too: model and cache alone."""
    rows = tokens * micro_batch
    layer = rows * (8 * model.hidden + 2 * model.kv_width + 4 * model.intermediate) * model.bytes
    activations = model.layers * rows * model.hidden * model.bytes + layer if checkpointing else model.layers * layer
    cache = 2 * model.layers * generation_batch * tokens * model.kv_width * model.bytes
    return cache, activations + 3 * min(LOGIT_BYTES, 4 * rows * model.vocabulary)


def peak_bytes(work: Callable[[], object]) -> int:
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiled:
        work()
    events = [event for event in profiled.profiler.kineto_results.events() if event.name() == "[memory]"]
    return int(np.cumsum([event.nbytes() for event in sorted(events, key=lambda event: event.start_ns())]).max())


def small_model(checkpointing: bool, **shape: int) -> tuple[Any, ModelSize]:
    torch.manual_seed(0)
    heads = {"num_attention_heads": 4, "num_key_value_heads": 1, "head_dim": 64}
    config = Qwen3Config(tie_word_embeddings=True, **heads, **shape)
    model = Qwen3ForCausalLM(config).train()
    _autocast(model, torch.bfloat16)
    if checkpointing:
        checkpoint_activations(model)
    return model, ModelSize.of(model, config, "float32", "bfloat16")


def micro_batch(checkpointing: bool, tokens: int, **shape: int) -> tuple[float, float, float]:
    """(expected by model and cache alone, expected, measured) bytes."""
    model, size = small_model(checkpointing, **shape)
    settings = {"tokens": tokens, "micro_batch": 1, "generation_batch": 1, "checkpointing": checkpointing}
    ids = torch.randint(0, size.vocabulary, (1, tokens))
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    for value in model.parameters():
        value.grad = torch.zeros_like(value)
    scorer = CompletionScorer(model)
    mask = torch.ones_like(ids, dtype=torch.bool)
    measured = peak_bytes(lambda: scorer(inputs, mask, ids[0]).logprobs_N.mean().backward())
    found = estimate_memory(size, **settings)
    return alone(size, **settings)[1], found.micro_batch - found.weights - found.gradients - found.moments, measured


@torch.no_grad()
def generation(prompts: int, group: int, prompt: int, tokens: int, **shape: int) -> tuple[float, float, float]:
    model, size = small_model(False, **shape)
    ids = torch.randint(0, size.vocabulary, (prompts, prompt))

    def decode() -> None:
        decoder = Decoder(model.eval(), {"input_ids": ids, "attention_mask": torch.ones_like(ids)}, tokens)
        decoder.select(torch.arange(prompts).repeat_interleave(group))
        for _ in range(tokens - 1):
            decoder.feed(torch.ones(prompts * group, dtype=torch.long))

    settings = {"tokens": prompt + tokens, "micro_batch": 1, "generation_batch": prompts * group}
    found = estimate_memory(size, checkpointing=False, prompt=prompt, group=group, **settings)
    before = alone(size, checkpointing=False, **settings)[0]
    return before, found.generation - found.weights - found.moments, peak_bytes(decode)


def optimizer_step(**options: bool) -> tuple[int, int]:
    """(temporaries of AdamW's step, bytes of the weights)."""
    model, _ = small_model(False, hidden_size=128, intermediate_size=512, num_hidden_layers=4, vocab_size=1000)
    optimizer = torch.optim.AdamW(model.parameters(), **options)
    for value in model.parameters():
        value.grad = torch.ones_like(value)
    optimizer.step()
    return peak_bytes(optimizer.step), sum(value.nbytes for value in model.parameters())


def show_measured() -> None:
    cases = {
        "micro-batch, activations stored": micro_batch(
            False, 512, hidden_size=256, intermediate_size=768, num_hidden_layers=6, vocab_size=500
        ),
        "micro-batch, recomputed: a layer": micro_batch(
            True, 512, hidden_size=256, intermediate_size=768, num_hidden_layers=6, vocab_size=500
        ),
        "micro-batch, recomputed: logits": micro_batch(
            True, 256, hidden_size=128, intermediate_size=384, num_hidden_layers=4, vocab_size=16000
        ),
        "micro-batch, recomputed: casts": micro_batch(
            True, 64, hidden_size=512, intermediate_size=2048, num_hidden_layers=4, vocab_size=500
        ),
        "generation, 2 x 16 completions": generation(
            2, 16, 128, 64, hidden_size=256, intermediate_size=768, num_hidden_layers=4, vocab_size=500
        ),
    }
    rows = [
        [label, *(f"{value / MIB:.1f} MiB" for value in values), f"{values[0] / values[2]:.2f}x", ratio(values)]
        for label, values in cases.items()
    ]
    columns = [
        "peak of",
        "model and cache alone",
        "vold check",
        "measured",
        "alone / measured",
        "vold check / measured",
    ]
    show("Memory beside weights, gradients and moments, float32 weights and bfloat16 products", columns, rows)
    steps = {"foreach": {"foreach": True}, "one parameter at a time (CPU)": {}, "fused (CUDA)": {"fused": True}}
    rows = []
    for label, options in steps.items():
        temporaries, weights = optimizer_step(**options)
        rows.append([label, f"{temporaries / MIB:.1f} MiB", f"{temporaries / weights:.2f}"])
    show("Temporaries of AdamW's step", ["AdamW", "peak", "in weights"], rows)


def ratio(values: tuple[float, float, float]) -> str:
    return f"{values[1] / values[2]:.2f}x"


def paper_size() -> ModelSize:
    with torch.device("meta"):
        text = {"hidden_size": 2048, "intermediate_size": 11008, "num_hidden_layers": 36, "vocab_size": 151936}
        heads = {"num_attention_heads": 16, "num_key_value_heads": 2}
        vision = {"depth": 32, "hidden_size": 1280, "intermediate_size": 3420, "out_hidden_size": 2048}
        config = Qwen2_5_VLConfig(text_config=text | heads, vision_config=vision, tie_word_embeddings=True)
        model = Qwen2_5_VLForConditionalGeneration(config)
    freeze(model, ["vision", "projector"])
    return ModelSize.of(model, config.get_text_config(), "float32", "bfloat16")


def show_paper() -> None:
    size = paper_size()
    one, several = (
        estimate_memory(size, prompt=300, group=5, fused=True, processes=count, **PAPER) for count in (1, 8)
    )
    cache, work = alone(size, **PAPER)
    before = {
        "generation": one.weights + one.moments + cache,
        "update": one.weights + one.moments + one.gradients + work,
    }

    def row(label: str, old: float | None, read: Callable[[MemoryEstimate], int]) -> list[str]:
        values = [old, read(one), read(several)]
        return [label, *("" if value is None else f"{value / GIB:.1f} GiB" for value in values)]

    rows = [
        row("weights", one.weights, lambda e: e.weights),
        row("moments", one.moments, lambda e: e.moments),
        row("gradients (DDP: its buckets)", one.gradients, lambda e: e.gradients),
        row("generation: buckets that stay", None, lambda e: e.buckets),
        row("generation: casts of the weights", None, lambda e: e.generation_casts),
        row("generation: cache", cache, lambda e: e.cache),
        row("generation: a decoding step", None, lambda e: e.decoding),
        row("update: activations, logits, casts", work, lambda e: e.activations + e.logits + e.casts),
        row("peak of generation", before["generation"], lambda e: e.generation),
        row("peak of the update", before["update"], lambda e: e.update),
    ]
    columns = ["Qwen2.5-VL-3B, full fine-tune", "model and cache alone", "one process", "each of several (DDP)"]
    show("What vold check expects at the paper's size", columns, rows)


if __name__ == "__main__":
    torch.set_num_threads(1)
    show_measured()
    show_paper()
