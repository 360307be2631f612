"""The key that is meant by a name which is none: misspelt, in another section, or of another trainer."""

import difflib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields
from typing import Any, get_args, get_origin

from pydantic import BaseModel

from vold_trainer.config.base import Config
from vold_trainer.objectives import Vold

ALIASES: Mapping[str, tuple[str, ...]] = {
    "optim.lr": ("learning_rate", "base_lr", "max_lr"),
    "optim.schedule": ("lr_scheduler", "lr_scheduler_type", "scheduler", "lr_schedule"),
    "optim.warmup_steps": ("warmup", "warmup_ratio", "num_warmup_steps", "lr_warmup_steps"),
    "optim.max_grad_norm": ("grad_clip", "clip_grad", "gradient_clipping", "max_norm"),
    "optim.betas": ("adam_beta1", "adam_beta2"),
    "batch.size": ("batch_size", "train_batch_size", "mini_batch_size", "ppo_mini_batch_size"),
    "batch": ("batch_size", "train_batch_size"),
    "batch.micro": ("micro_batch_size", "per_device_train_batch_size", "gradient_accumulation_steps"),
    "micro": ("micro_batch_size", "per_device_train_batch_size", "gradient_accumulation_steps"),
    "steps": ("epochs", "num_epochs", "num_train_epochs", "max_steps", "total_steps", "num_steps", "iterations"),
    "out": ("output_dir", "output", "out_dir", "save_dir", "output_path"),
    "student.path": ("model", "model_name", "model_name_or_path", "model_path", "student_model", "base_model"),
    "student.dtype": ("dtype", "torch_dtype", "bf16", "fp16", "precision"),
    "student.lora": ("use_peft", "peft", "adapter"),
    "student.lora.r": ("lora_r", "lora_rank"),
    "student.checkpoint_activations": ("gradient_checkpointing", "activation_checkpointing"),
    "teacher.url": ("teacher_model", "teacher_model_name_or_path", "teacher_path", "teacher_url"),
    "verifier.url": ("verifier_url", "reward_url"),
    "verifier.name": ("reward", "rewards", "reward_fn", "reward_func", "reward_funcs", "reward_function"),
    "data.source": ("dataset", "dataset_name", "dataset_path", "data_path", "train_file", "train_files", "data_files"),
    "data.0.source": ("dataset", "dataset_name", "dataset_path", "data_path", "data_files"),
    "traces": ("dataset", "dataset_name", "dataset_path", "data_path", "train_file", "train_files", "data_files"),
    "rollout.group": ("num_generations", "group_size", "num_samples", "n", "n_samples", "samples_per_prompt"),
    "rollout.prompts": ("prompts_per_step", "num_prompts"),
    "rollout.max_tokens": ("max_new_tokens", "max_completion_length", "max_response_length", "max_length"),
    "rollout.engine": ("use_vllm", "vllm", "inference_engine"),
    "rollout.temperature": ("temp",),
    "sampling.n": ("num_samples", "n_samples"),
    "in_flight": ("request", "concurrency", "max_concurrency", "num_workers", "max_in_flight"),
    "samples": ("n", "num_samples", "n_samples", "num_generations"),
    "max_tokens": ("max_new_tokens", "max_completion_length", "max_length"),
    "objective.name": ("loss", "loss_type", "algorithm", "algo", "method", "adv_estimator", "trainer"),
    "objective.beta": ("kl", "kl_coef", "kl_coeff", "kl_beta", "kl_loss_coef"),
    "checkpoints.every": ("save_steps", "save_every", "save_freq", "checkpoint_every"),
    "checkpoints.keep_last": ("save_total_limit", "max_checkpoints"),
    "trackers": ("report_to", "logger", "loggers", "log_with", "wandb", "tensorboard"),
}
"""Names of keys in other trainers, by the key here."""

SURE, POSSIBLE = 0.75, 0.6
"""How alike two names are (difflib) of which one is the other misspelt, and of which it may be if they begin alike."""


def meant_key(kind: type[Config], path: Sequence[str | int], siblings: Sequence[str]) -> str | None:
    """The key that is meant by the unknown key at `path`: a name of `siblings`, or a whole dotted key; None if nothing
    is like it.
    """
    name = str(path[-1]).lower().replace("-", "_")
    if sure := difflib.get_close_matches(name, siblings, n=1, cutoff=SURE):
        return sure[0]
    section = "".join(f"{part}." for part in path[:-1])
    known = [key for key in _keys(kind, "") if not key.startswith(section) or _first(key, section) in siblings]
    aliases = [key for key, names in ALIASES.items() if name in names and key in known]
    own = [key for key in aliases if key.startswith(section)]
    alike = [near for near in difflib.get_close_matches(name, siblings, cutoff=POSSIBLE) if near[0] == name[0]]
    elsewhere = [key for key in known if key.rpartition(".")[2] == name]
    return next(iter([*own, *alike, *elsewhere, *aliases]), None)


def _first(key: str, section: str) -> str:
    return key.removeprefix(section).partition(".")[0]


def _keys(kind: type[BaseModel], prefix: str) -> Iterator[str]:
    """The dotted keys of a config; those of an objective are of the default one, and those of lists of the first."""
    for name, field in kind.model_fields.items():
        key = f"{prefix}{name}"
        yield key
        if name == "objective":
            yield from (f"{key}.{option.name}" for option in fields(Vold))
        elif (inner := _model(field.annotation)) is not None:
            yield from _keys(inner, f"{key}.0." if get_origin(field.annotation) is list else f"{key}.")


def _model(annotation: Any) -> type[BaseModel] | None:
    """The model of a section, through optional fields and lists; none of a mapping, whose keys have any name."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    if get_origin(annotation) is dict:
        return None
    return next(filter(None, map(_model, get_args(annotation))), None)
