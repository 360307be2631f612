"""What the teacher and the trainer take of transformers beyond what its documentation promises.

This is the one package that both of them know; the client does not import this module. An update of transformers that
renames or changes what is used here shows when a model is loaded, and not in the middle of a run: imports of such names
stand in `undocumented`, and `tried` runs the code that builds on them with a tiny model.
"""

import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from transformers import LlamaConfig, LlamaForCausalLM
from transformers import __version__ as installed
from vold_proto.distribution import VERSION, UnfitError

NEWEST = "5.24.0"
"""The newest transformers that the tests of this version were run with."""


def cache_name(forward: Callable[..., Any]) -> str:
    """The argument by which a model's forward takes a key-value cache: past_key_values before transformers 5.24, and in
    models that bring their own code."""
    names = inspect.signature(forward).parameters
    return "past_key_values" if "past_key_values" in names and "cache" not in names else "cache"


def attention_for(config: Any) -> str | None:
    """The attention to load a model with where nobody asks for one: None for transformers' own choice, but eager where
    attention scores are soft-capped (Gemma 2), which sdpa leaves out, and transformers before 5.24 says nothing.
    """
    capped = getattr(config.get_text_config(decoder=True), "attn_logit_softcapping", None) is not None
    return "eager" if capped else None


@contextmanager
def undocumented() -> Iterator[None]:
    """A block that imports names of transformers that it may rename. Raises UnfitError where one is missing."""
    try:
        yield
    except ImportError as error:
        if isinstance(error, ModuleNotFoundError) and not (error.name or "").startswith("transformers."):
            raise
        raise _unfit(str(error)) from error


@contextmanager
def tried(what: str) -> Iterator[None]:
    """A block that tries what builds on transformers, with nothing of the user's. Raises UnfitError, naming `what`,
    whatever way it fails.
    """
    try:
        yield
    except Exception as error:
        first = str(error).strip().partition("\n")[0]
        raise _unfit(f"{what}: {type(error).__name__}: {first}") from error


def tiny_model() -> Any:
    """A Llama of 2 layers and some thousand weights, the same each time, without touching torch's own generator."""
    config = LlamaConfig(
        vocab_size=32,
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=64,
    )
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)  # torch.manual_seed is for GPUs' generators too
        return LlamaForCausalLM(config).eval().requires_grad_(False)


def _unfit(why: str) -> UnfitError:
    return UnfitError(
        f"transformers {installed} does not fit vold {VERSION} ({why}): install the version that it was tried with, "
        f"transformers=={NEWEST}, or a newer vold"
    )
