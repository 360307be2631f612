"""Trackers: missing ones are refused, and TensorBoard's file holds the logged rollouts. Thumbnails stay small."""

import io

import numpy as np
import pytest
from accelerate import Accelerator
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from vold_trainer.data.pictures import MAX_BYTES, decode_data_url, encode_thumbnail
from vold_trainer.errors import UsageError
from vold_trainer.runs import trackers


def test_a_missing_tracker_is_refused_with_its_package(monkeypatch):
    trackers.check_installed(["tensorboard"])
    with pytest.raises(UsageError, match=r"trackers\[1\] is 'tensorbord', which is no tracker .*tensorboard.*wandb"):
        trackers.check_installed(["tensorboard", "tensorbord"])
    monkeypatch.setattr(trackers, "get_available_trackers", list)
    monkeypatch.setattr(trackers.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UsageError, match=r"trackers\[0\] is 'comet_ml'.*pip install comet-ml"):
        trackers.check_installed(["comet_ml"])


def test_rollouts_are_text_and_images_in_tensorboard(tmp_path):
    accelerator = Accelerator(cpu=True, log_with=["tensorboard"], project_dir=str(tmp_path))
    trackers.start(accelerator, ["tensorboard"], tmp_path, {"objective.beta": 0.1}, 0)
    row = {
        "step": 7, "id": "a-1", "prompt": "2 + 2\n```", "reference": "4", "tokens": ["\\boxed", "{5}"],
        "reward": 0.0, "correct": False, "extracted": "5", "reason": "5 is not 4",
        "images": [encode_thumbnail(Image.new("RGB", (24, 8), "red"))],
    }  # fmt: skip
    trackers.log_rollouts(accelerator, [row])
    accelerator.end_training()
    (file,) = (tmp_path / "vold").glob("events*")
    events = EventAccumulator(str(file)).Reload()
    (text,) = events.Tensors("rollouts/0/text_summary")
    assert text.step == 7
    markdown = text.tensor_proto.string_val[0].decode()
    assert "**wrong**" in markdown
    assert "    \\boxed{5}" in markdown
    assert "    2 + 2\n    ```" in markdown
    (picture,) = events.Images("rollouts/0")
    assert np.asarray(Image.open(io.BytesIO(picture.encoded_image_string)))[0, 0].tolist() == [255, 0, 0]


def test_thumbnails_are_small_and_small_pictures_stay_as_they_are():
    small = Image.fromarray(np.random.default_rng(0).integers(0, 255, (20, 30, 3), np.uint8))
    assert np.array_equal(np.asarray(decode_data_url(encode_thumbnail(small))), np.asarray(small))
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 255, (900, 1400, 3), np.uint8))
    shown = encode_thumbnail(noise)
    assert len(shown) < 1.4 * MAX_BYTES
    width, height = decode_data_url(shown).size
    assert width <= 320
    assert width / height == pytest.approx(1400 / 900, rel=0.05)
    with pytest.raises(ValueError, match="no PNG"):
        decode_data_url("http://example.invalid/a.png")
