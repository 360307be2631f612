"""Uses of transformers beyond its documentation, in the teacher and the trainer.

Only this package is common to both; the client does not import this module. If a new transformers renames or changes
undocumented parts, loading a model fails, not the middle of a run: imports of such names stand in `undocumented`, and
`tried` runs the code that uses them with a tiny model.
"""

import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from transformers import LlamaConfig, LlamaForCausalLM
from transformers import __version__ as installed
from vold_proto.distribution import VERSION, IncompatibleVersionError

NEWEST = "5.24.0"
"""The newest transformers with which this version was tested."""


def cache_name(forward: Callable[..., Any]) -> str:
    """The name of a forward's key-value cache argument: past_key_values before transformers 5.24, and in models with
    their own code.
    """
    names = inspect.signature(forward).parameters
    return "past_key_values" if "past_key_values" in names and "cache" not in names else "cache"


def attention_for(config: Any) -> str | None:
    """The default attention of a model: None for transformers' choice, but eager for soft-capped attention scores
    (Gemma 2), which sdpa ignores; transformers before 5.24 does not warn of that.
    """
    capped = getattr(config.get_text_config(decoder=True), "attn_logit_softcapping", None) is not None
    return "eager" if capped else None


@contextmanager
def undocumented() -> Iterator[None]:
    """A block that imports undocumented names of transformers. Raises IncompatibleVersionError if one is missing."""
    try:
        yield
    except ImportError as error:
        if isinstance(error, ModuleNotFoundError) and not (error.name or "").startswith("transformers."):
            raise
        raise _incompatible(str(error)) from error


@contextmanager
def tried(what: str) -> Iterator[None]:
    """A block that runs code on undocumented parts of transformers, without user input. Raises
    IncompatibleVersionError, which names `what`, on any error.
    """
    try:
        yield
    except Exception as error:
        first = str(error).strip().partition("\n")[0]
        raise _incompatible(f"{what}: {type(error).__name__}: {first}") from error


def tiny_model() -> Any:
    """A Llama of 2 layers and some thousand weights, always the same; torch's global generator is unchanged."""
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
        torch.default_generator.manual_seed(0)  # torch.manual_seed would seed the GPUs' generators too
        return LlamaForCausalLM(config).eval().requires_grad_(False)


def _incompatible(why: str) -> IncompatibleVersionError:
    return IncompatibleVersionError(
        f"transformers {installed} does not fit vold {VERSION} ({why}): install the version that it was tried with, "
        f"transformers=={NEWEST}, or a newer vold"
    )
