"""The memory estimate of `vold check`, against the tensors that torch allocates."""

import numpy as np
import pytest
import torch
from torch.profiler import ProfilerActivity, profile
from transformers import (
    DynamicCache,
    LlamaConfig,
    LlamaForCausalLM,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen3Config,
    Qwen3ForCausalLM,
)
from vold_packing.transformers import cache_name
from vold_trainer.checking.memory import ModelSize, activation_bytes, estimate_memory, format_bytes
from vold_trainer.student import logprobs, models
from vold_trainer.student.decoder import Decoder
from vold_trainer.student.models import (
    CompletionScorer,
    _autocast,
    checkpoint_activations,
    compute_head_in_float32,
)
from vold_trainer.student.parts import freeze

SHAPE = {
    "vocab_size": 1000, "hidden_size": 64, "intermediate_size": 192, "num_hidden_layers": 3, "num_attention_heads": 2,
    "num_key_value_heads": 1, "head_dim": 32,
}  # fmt: skip


@pytest.fixture(params=[(Qwen3Config, Qwen3ForCausalLM), (LlamaConfig, LlamaForCausalLM)], ids=["qwen3", "llama"])
def causal(request):
    config_of, model_of = request.param
    config = config_of(**SHAPE)
    return config, model_of(config)


def test_weights_gradients_and_moments_are_exact(causal):
    config, model = causal
    model.model.layers[0].requires_grad_(False)
    found = estimate_memory(
        ModelSize.of(model, config, "float32"), tokens=10, micro_batch=1, generation_batch=1, checkpointing=False
    )
    total = sum(value.numel() for value in model.parameters())
    trainable = total - sum(value.numel() for value in model.model.layers[0].parameters())
    assert (found.weights, found.gradients, found.moments) == (4 * total, 4 * trainable, 8 * trainable)


@pytest.mark.parametrize("checkpointing", [False, True])
def test_activations_are_about_what_autograd_saves(causal, checkpointing):
    config, model = causal
    rows, tokens = 4, 100
    if checkpointing:
        checkpoint_activations(model)
    model.train()
    parameters = {value.untyped_storage().data_ptr() for value in model.parameters()}
    saved: dict[int, int] = {}

    def save(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        saved[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(save, lambda tensor: tensor):
        states = model.base_model(torch.randint(0, 1000, (rows, tokens)), use_cache=False).last_hidden_state
    assert states.requires_grad
    real = sum(count for pointer, count in saved.items() if pointer not in parameters)
    found = activation_bytes(ModelSize.of(model, config, "float32"), rows * tokens, checkpointing=checkpointing)
    assert 0.9 < (found - rows * tokens * config.hidden_size * 4) / real < 1.1  # the head's input comes later


def test_the_cache_has_the_size_of_transformers_cache(causal):
    config, model = causal
    cache = DynamicCache()
    model(torch.randint(0, 1000, (4, 50)), use_cache=True, **{cache_name(model.forward): cache})
    real = sum(layer.keys.nbytes + layer.values.nbytes for layer in cache.layers)
    found = estimate_memory(
        ModelSize.of(model, config, "float32"), tokens=50, micro_batch=1, generation_batch=4, checkpointing=False
    )
    assert found.cache == real


def peak_bytes(work) -> int:
    """The most that torch has allocated at once while `work` runs."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiled:
        work()
    events = [event for event in profiled.profiler.kineto_results.events() if event.name() == "[memory]"]
    return int(np.cumsum([event.nbytes() for event in sorted(events, key=lambda event: event.start_ns())]).max())


def qwen3(compute=None, checkpointing=False, head=None, **shape):
    torch.manual_seed(0)
    config = Qwen3Config(**SHAPE | {"num_attention_heads": 2, "tie_word_embeddings": True} | shape)
    model = Qwen3ForCausalLM(config).train()
    if compute:
        _autocast(model, torch.bfloat16)
    if head:
        compute_head_in_float32(model)
    if checkpointing:
        checkpoint_activations(model)
    return model, ModelSize.of(model, config, "float32", compute, head)


WIDE_HEAD = {"vocab_size": 8000, "hidden_size": 96, "num_hidden_layers": 2}
DEEP = {"hidden_size": 128, "intermediate_size": 384, "num_hidden_layers": 4, "head_dim": 64, "vocab_size": 500}
MANY_WEIGHTS = {**DEEP, "hidden_size": 256, "intermediate_size": 1536, "num_hidden_layers": 3}


@pytest.mark.parametrize(
    ("shape", "tokens", "chunk", "compute", "checkpointing"),
    [
        pytest.param(DEEP, 300, 1 << 28, None, False, id="activations"),
        pytest.param(DEEP, 300, 1 << 28, "bfloat16", False, id="activations, autocast"),
        pytest.param(DEEP, 300, 1 << 28, "bfloat16", True, id="a recomputed layer"),
        pytest.param(WIDE_HEAD, 128, 1 << 28, "bfloat16", True, id="logits"),
        pytest.param(WIDE_HEAD, 128, 1 << 20, None, False, id="logits in chunks"),
        pytest.param(WIDE_HEAD, 128, 1 << 20, "bfloat16", True, id="logits in chunks, autocast"),
        pytest.param(WIDE_HEAD | {"head": "float32"}, 128, 1 << 28, "bfloat16", True, id="logits, float32 head"),
        pytest.param(WIDE_HEAD | {"head": "float32"}, 128, 1 << 20, "bfloat16", True, id="in chunks, float32 head"),
        pytest.param(WIDE_HEAD | {"entropy": True}, 128, 1 << 28, "bfloat16", True, id="logits, entropy bonus"),
        pytest.param(WIDE_HEAD | {"entropy": True}, 128, 1 << 20, None, True, id="in chunks, entropy bonus"),
        pytest.param(MANY_WEIGHTS, 48, 1 << 28, None, True, id="gradients"),
        pytest.param(MANY_WEIGHTS, 48, 1 << 28, "bfloat16", True, id="casts"),
    ],
)
def test_the_peak_of_a_micro_batch_is_what_torch_allocates(monkeypatch, shape, tokens, chunk, compute, checkpointing):
    monkeypatch.setattr(logprobs, "LOGIT_BYTES", chunk)
    monkeypatch.setattr(models, "RECOMPUTE_BYTES", chunk)
    entropy = bool(shape.get("entropy"))
    model, size = qwen3(compute, checkpointing, **{name: value for name, value in shape.items() if name != "entropy"})
    scorer = CompletionScorer(model)
    ids = torch.randint(0, shape["vocab_size"], (1, tokens))
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}

    def passes() -> None:
        scores = scorer(inputs, torch.ones_like(ids, dtype=torch.bool), ids[0], entropy_gradient=entropy)
        (scores.logprobs_N.mean() - (scores.entropy_N.mean() if entropy else 0)).backward()

    for value in model.parameters():
        value.grad = torch.zeros_like(value)
    found = estimate_memory(size, tokens=tokens, micro_batch=1, generation_batch=1, checkpointing=checkpointing)
    estimated = found.micro_batch - found.weights - found.gradients - found.moments
    assert 0.85 < estimated / peak_bytes(passes) < 1.2


@pytest.mark.parametrize("compute", [None, "bfloat16"])
@torch.no_grad()
def test_the_peak_of_generation_is_what_torch_allocates(compute):
    model, size = qwen3(compute, **DEEP)
    prompts, group, prompt, tokens = 2, 12, 40, 16
    ids = torch.randint(0, 500, (prompts, prompt))

    def decode() -> None:
        decoder = Decoder(model.eval(), {"input_ids": ids, "attention_mask": torch.ones_like(ids)}, tokens)
        decoder.select(torch.arange(prompts).repeat_interleave(group))
        assert decoder.shares_prompts
        for _ in range(tokens - 1):
            decoder.feed(torch.ones(prompts * group, dtype=torch.long))

    found = estimate_memory(
        size,
        tokens=prompt + tokens,
        micro_batch=1,
        generation_batch=prompts * group,
        checkpointing=False,
        prompt=prompt,
        group=group,
    )
    assert 0.85 < (found.generation - found.weights - found.moments) / peak_bytes(decode) < 1.2


@pytest.mark.parametrize("fused", [None, True])
def test_the_peak_of_the_optimizers_step_is_what_torch_allocates(fused):
    model, size = qwen3()
    optimizer = torch.optim.AdamW(model.parameters(), fused=fused)
    for value in model.parameters():
        value.grad = torch.ones_like(value)
    optimizer.step()  # from then on there are moments
    found = estimate_memory(size, tokens=1, micro_batch=1, generation_batch=1, checkpointing=False, fused=bool(fused))
    assert peak_bytes(optimizer.step) == pytest.approx(found.temporaries, abs=1000)


def test_the_papers_size():
    """Qwen2.5-VL-3B with configs/vold_qwen2.5vl_3b.yaml on an 80 GB device, in one process and in several."""
    with torch.device("meta"):
        config = Qwen2_5_VLConfig(
            text_config={
                "hidden_size": 2048,
                "intermediate_size": 11008,
                "num_hidden_layers": 36,
                "num_attention_heads": 16,
                "num_key_value_heads": 2,
                "vocab_size": 151936,
            },
            vision_config={"depth": 32, "hidden_size": 1280, "intermediate_size": 3420, "out_hidden_size": 2048},
            tie_word_embeddings=True,
        )
        model = Qwen2_5_VLForConditionalGeneration(config)
    freeze(model, ["vision", "projector"])
    settings = {
        "tokens": 8192 + 300,
        "micro_batch": 1,
        "generation_batch": 40,
        "checkpointing": True,
        "prompt": 300,
        "group": 5,
        "fused": True,
    }
    size = ModelSize.of(model, config.get_text_config(), "float32", "bfloat16")
    one, several = estimate_memory(size, **settings), estimate_memory(size, processes=8, **settings)
    gib = {name: round(getattr(several, name) / 2**30, 1) for name in several.__dataclass_fields__}
    layer = 2 * 2048 * 2048 + 2 * 2048 * 256 + 3 * 2048 * 11008
    casts = 2 * (36 * layer + 151936 * 2048)
    assert several.generation_casts == casts
    assert several.cache == 36 * (40 * 8192 + 8 * 300) * 256 * (2 + 2)
    assert several.generation - one.generation == several.buckets == several.gradients
    assert gib["gradients"] == 11.5
    assert round(one.peak / 2**30) == 56
    assert round(several.peak / 2**30) == 66


def test_bytes_are_formatted_in_readable_units():
    assert [format_bytes(count) for count in (10, 3 << 10, 5 << 20, 3 << 29)] == ["10 B", "3 KiB", "5 MiB", "1.5 GiB"]


def test_the_weights_of_the_start_are_held_throughout():
    _, size = qwen3(**DEEP)
    settings = {"tokens": 64, "micro_batch": 1, "generation_batch": 4, "checkpointing": False}
    plain, kept = estimate_memory(size, **settings), estimate_memory(size, **settings, reference=True)
    for peak in ("generation", "micro_batch", "step", "peak"):
        assert getattr(kept, peak) - getattr(plain, peak) == size.trainable_bytes > 0
