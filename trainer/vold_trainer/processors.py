"""Processors: what turns text and pictures into a student's inputs."""

from pathlib import Path
from typing import Any

from transformers import AutoConfig, AutoProcessor, ProcessorMixin, Qwen2_5_VLProcessor
from transformers.utils import is_torchvision_available


class ImageTextProcessor(Qwen2_5_VLProcessor):
    """Qwen2.5-VL's processor without its video part, which is the only one that needs torchvision."""

    def __init__(self, image_processor: Any = None, tokenizer: Any = None, chat_template: str | None = None) -> None:
        super().__init__(image_processor, tokenizer, None, chat_template=chat_template)


def load_processor(path: str | Path, *, trust_remote_code: bool = False) -> Any:
    """The processor of a model folder, or the tokenizer of a folder that holds a text model.

    AutoProcessor's choice, except that a Qwen2.5-VL folder gets a processor without video where it was saved so or
    torchvision is missing.
    """
    saved_as = ProcessorMixin.get_processor_dict(path)[0].get("processor_class")
    if saved_as == ImageTextProcessor.__name__ or (
        not is_torchvision_available() and AutoConfig.from_pretrained(path).model_type == "qwen2_5_vl"
    ):
        return ImageTextProcessor.from_pretrained(path)
    return AutoProcessor.from_pretrained(path, trust_remote_code=trust_remote_code)
