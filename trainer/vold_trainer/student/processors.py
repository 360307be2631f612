"""Processors: what turns text and pictures into a student's inputs.

torchvision is needed only for the video part of a processor. Where it is missing, a processor does without.
"""

import json
from functools import cache
from pathlib import Path
from typing import Any

from transformers import AutoConfig, AutoProcessor, ProcessorMixin, Qwen2_5_VLProcessor
from vold_packing.transformers import undocumented

with undocumented():
    from transformers.models.auto.processing_auto import PROCESSOR_MAPPING
    from transformers.utils import cached_file, is_torchvision_available

VIDEO = "video_processor"
VIDEO_FILE = "video_preprocessor_config.json"


@cache
def without_video(kind: type[ProcessorMixin]) -> type[ProcessorMixin]:
    """A processor class without its video part. What it saves is an ordinary folder of the whole class, with the video
    settings that it was loaded with.
    """
    names = kind.get_attributes()

    class Base(ProcessorMixin):
        """Comes after `kind` in the order of resolution: sees what that hands on to ProcessorMixin."""

        def __init__(self, *parts: Any, **options: Any) -> None:
            given = dict(zip(names, parts, strict=False)) | options
            given.pop(VIDEO, None)
            super().__init__(**given)

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
            # Without settings of its own, a video processor reads those of the pictures.
            pictures = {k: v for k, v in self.image_processor.to_dict().items() if k != "image_processor_type"}
            settings = getattr(self, "video_settings", None) or pictures
            (Path(save_directory) / VIDEO_FILE).write_text(json.dumps(settings, indent=2) + "\n")
            return saved

    ImageText.__name__ = kind.__name__  # what a saved folder names
    return ImageText


ImageTextProcessor: Any = without_video(Qwen2_5_VLProcessor)
"""Qwen2.5-VL's processor without video."""


def load_processor(path: str | Path, *, trust_remote_code: bool = False) -> Any:
    """The processor of a model folder, or the tokenizer of a folder that holds a text model.

    AutoProcessor's choice, except that a processor of transformers' own is without video where it was saved so
    (`ImageTextProcessor`) or torchvision is missing.
    """
    saved: dict[str, Any] = ProcessorMixin.get_processor_dict(path)[0]
    if saved.get("processor_class") == "ImageTextProcessor":
        return ImageTextProcessor.from_pretrained(path)
    if not is_torchvision_available():
        config = type(AutoConfig.from_pretrained(path, trust_remote_code=trust_remote_code))
        kind: Any = PROCESSOR_MAPPING.get(config, None)
        if kind is not None and VIDEO in kind.get_attributes():
            processor: Any = without_video(kind).from_pretrained(path)
            processor.video_settings = saved.get(VIDEO) or _video_file(path)
            return processor
    return AutoProcessor.from_pretrained(path, trust_remote_code=trust_remote_code)


def _video_file(path: str | Path) -> dict[str, Any] | None:
    found = cached_file(str(path), VIDEO_FILE, _raise_exceptions_for_missing_entries=False)
    if found is None:
        return None
    settings: dict[str, Any] = json.loads(Path(found).read_text())
    return settings
