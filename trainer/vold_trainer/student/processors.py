"""Processors, which turn text and images into model inputs.

Only the video part of a processor needs torchvision. Without torchvision, processors are loaded without it.
"""

import json
from functools import cache
from pathlib import Path
from typing import Any

from transformers import AutoConfig, AutoProcessor, ProcessorMixin, Qwen2_5_VLProcessor
from vold_packing.transformers import undocumented

with undocumented():
    from transformers.image_processing_backends import PilBackend
    from transformers.models.auto.processing_auto import PROCESSOR_MAPPING
    from transformers.utils import cached_file, is_torchvision_available

VIDEO = "video_processor"
VIDEO_FILE = "video_preprocessor_config.json"


@cache
def without_video(kind: type[ProcessorMixin]) -> type[ProcessorMixin]:
    """A processor class without its video part. It saves an ordinary folder of the full class, with the video settings
    of the folder that it was loaded from.
    """
    names = kind.get_attributes()

    class Base(ProcessorMixin):
        """Follows `kind` in the method resolution order, and so gets its arguments for ProcessorMixin."""

        def __init__(self, *parts: Any, **options: Any) -> None:
            arguments = dict(zip(names, parts, strict=False)) | options
            arguments.pop(VIDEO, None)
            super().__init__(**arguments)

    class ImageText(kind, Base):  # type: ignore[valid-type, misc]
        @classmethod
        def get_attributes(cls) -> list[str]:
            return [name for name in names if name != VIDEO]

        @classmethod
        def _get_arguments_from_pretrained(cls, *args: Any, **options: Any) -> list[Any]:
            parts: list[Any] = super()._get_arguments_from_pretrained(*args, **options)
            parts.insert(names.index(VIDEO), None)
            return parts

        def save_pretrained(self, save_directory: Any, push_to_hub: bool = False, **options: Any) -> Any:
            saved = super().save_pretrained(save_directory, push_to_hub, **options)
            # A video processor without settings of its own uses those of the images.
            images = {k: v for k, v in self.image_processor.to_dict().items() if k != "image_processor_type"}
            settings = getattr(self, "video_settings", None) or images
            (Path(save_directory) / VIDEO_FILE).write_text(json.dumps(settings, indent=2) + "\n")
            return saved

    ImageText.__name__ = kind.__name__  # the class name written to a saved folder
    return ImageText


ImageTextProcessor: Any = without_video(Qwen2_5_VLProcessor)
"""The processor of Qwen2.5-VL without its video part."""


def load_processor(path: str | Path, *, trust_remote_code: bool = False) -> Any:
    """Load the processor of a model folder, or the tokenizer if the folder holds a text model.

    Its class is the choice of AutoProcessor, except that a processor of transformers is loaded without its video part
    if it was saved so (`ImageTextProcessor`) or torchvision is missing.
    """
    saved: dict[str, Any] = ProcessorMixin.get_processor_dict(path)[0]
    if saved.get("processor_class") == "ImageTextProcessor":
        return ImageTextProcessor.from_pretrained(path)
    if not is_torchvision_available():
        config = type(AutoConfig.from_pretrained(path, trust_remote_code=trust_remote_code))
        kind: Any = PROCESSOR_MAPPING.get(config, None)
        if kind is not None and VIDEO in kind.get_attributes():
            processor: Any = without_video(kind).from_pretrained(path)
            processor.video_settings = saved.get(VIDEO) or _read_video_settings(path)
            return processor
    return AutoProcessor.from_pretrained(path, trust_remote_code=trust_remote_code)


def image_backend(processor: Any) -> str:
    """What a processor resizes images with, "torchvision" or "pillow": the same image has other pixels after each."""
    return "pillow" if isinstance(getattr(processor, "image_processor", None), PilBackend) else "torchvision"


def _read_video_settings(path: str | Path) -> dict[str, Any] | None:
    file = cached_file(str(path), VIDEO_FILE, _raise_exceptions_for_missing_entries=False)
    if file is None:
        return None
    settings: dict[str, Any] = json.loads(Path(file).read_text())
    return settings
