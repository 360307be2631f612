"""Images are resized alike where completions are generated and where they are trained on, or the run does not begin."""

import pytest
from vold_trainer.config import RolloutConfig, StudentConfig
from vold_trainer.errors import UsageError
from vold_trainer.pocket.world import make_examples
from vold_trainer.rollout.engines import check_images
from vold_trainer.student.models import load_student
from vold_trainer.student.processors import image_backend


def test_images_that_vllm_resizes_otherwise_are_refused_before_the_run():
    student = load_student(StudentConfig(path="pocket:student"))
    assert image_backend(student.processor) == "pillow"
    images, texts = (make_examples("train", 3, modality=modality) for modality in ("image", "text"))
    served = {"engine": "vllm", "url": ["http://gpu-1:8000", "http://gpu-2:8000"]}
    with pytest.raises(UsageError, match=r"with pillow, the servers with torchvision .*install torchvision"):
        check_images(RolloutConfig(**served), student, [*texts, *images])
    check_images(RolloutConfig(**served), student, texts)
    check_images(RolloutConfig(**served, image_backend="pillow"), student, images)
    check_images(RolloutConfig(engine="vllm"), student, images)  # a server in the trainer's own environment
    check_images(RolloutConfig(), student, images)
