"""Choice of the rollout engine, and whether it sees the same images as the trainer."""

from collections.abc import Iterable

from vold_trainer.config import RolloutConfig
from vold_trainer.data import Example
from vold_trainer.errors import UsageError
from vold_trainer.rollout.base import Engine
from vold_trainer.rollout.hf import HfEngine
from vold_trainer.student.models import Student
from vold_trainer.student.processors import image_backend

LOCAL = "local:"
"""The URL of a server that the trainer starts, in an environment that is its own."""


def make_engine(config: RolloutConfig, student: Student) -> Engine:
    """Create the engine that `rollout.engine` names. Raises UsageError if vLLM cannot serve the student."""
    if config.engine == "vllm":
        from vold_trainer.rollout.vllm import VllmEngine

        return VllmEngine(student, config)
    return HfEngine(student, batch=config.batch)


def check_images(config: RolloutConfig, student: Student, examples: Iterable[Example]) -> None:
    """Raise UsageError if there are images, and a server resizes them otherwise than the trainer: the completions would
    be of other pixels than those that are trained on, and no id would show it.
    """
    urls = [config.url] if isinstance(config.url, str) else config.url
    if config.engine != "vllm" or set(urls) == {LOCAL}:
        return
    own, theirs = image_backend(student.processor), config.image_backend
    if own == theirs or not any(example.images for example in examples):
        return
    remedy = (
        "install torchvision beside the trainer, or set rollout.image_backend=pillow if the servers have none either"
        if own == "pillow"
        else "set rollout.image_backend=torchvision, or give the servers torchvision"
    )
    raise UsageError(
        f"rollout.engine is vllm, the rows have images, and the trainer resizes them with {own}, the servers with "
        f"{theirs} (rollout.image_backend): {remedy}"
    )
