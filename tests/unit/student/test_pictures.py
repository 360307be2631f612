"""Within a training step a prompt's images are decoded and processed once."""

import io

import numpy as np
import pytest
import torch
from PIL import Image
from vold_trainer.config import StudentConfig
from vold_trainer.data import Example
from vold_trainer.data.images import LazyImage, LazyImages
from vold_trainer.errors import UsageError
from vold_trainer.student.models import load_student
from vold_trainer.student.pictures import PictureCache, join_inputs


class Counted:
    """A PNG file of random pixels, and how often it was read."""

    def __init__(self, seed, side=56):
        buffer = io.BytesIO()
        pixels = np.random.default_rng(seed).integers(0, 255, (side, side, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(buffer, "PNG")
        self.content, self.reads = buffer.getvalue(), 0

    def read(self):
        self.reads += 1
        return self.content

    def example(self):
        image = LazyImage(self.content, f"row {id(self)}", reload=self.read)
        content = [{"type": "image"}, {"type": "text", "text": "What is it?"}]
        return Example("a", ({"role": "user", "content": content},), "", LazyImages([image]))


@pytest.fixture(scope="module")
def pocket():
    return load_student(StudentConfig(path="pocket:student"))


@pytest.fixture
def student(pocket):
    pocket.pictures = PictureCache()
    return pocket


def same(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def test_a_step_decodes_each_image_once(student):
    files = [Counted(seed) for seed in range(3)]
    examples = [file.example() for file in files]
    expected = [student.encode(examples), student.encode(examples[::2])]
    before = [file.reads for file in files]
    with student.pictures.within_steps(0):
        for _ in range(4):
            assert same(student.encode(examples), expected[0])
            assert same(student.encode(examples[::2]), expected[1])
        assert [file.reads - count for file, count in zip(files, before, strict=True)] == [1, 1, 1]
        student.pictures.end_step()
        assert student.pictures.stored_input_bytes == student.pictures.stored_image_bytes == 0
        student.encode(examples)
        assert [file.reads - count for file, count in zip(files, before, strict=True)] == [2, 2, 2]


def test_outside_of_steps_nothing_is_stored(student):
    file = Counted(0)
    example = file.example()
    student.encode([example])
    student.encode([example])
    assert file.reads == 2
    assert student.pictures.stored_input_bytes == student.pictures.stored_image_bytes == 0


def test_prompts_of_a_step_that_is_generated_ahead_stay_until_its_update(student):
    now, later = Counted(0), Counted(1)
    examples = [now.example(), later.example()]
    with student.pictures.within_steps(1):
        student.encode(examples[:1])
        student.encode(examples[1:])
        student.encode(examples[:1])
        student.pictures.end_step()
        student.encode(examples[1:])
        student.pictures.end_step()
        assert student.pictures.stored_input_bytes > 0
        student.pictures.end_step()
        assert student.pictures.stored_input_bytes == student.pictures.stored_image_bytes == 0
    assert (now.reads, later.reads) == (1, 1)


@pytest.mark.parametrize("room", [0, 1, 2, 3])
def test_what_is_stored_is_bounded(student, room):
    files = [Counted(seed) for seed in range(3)]
    examples = [file.example() for file in files]
    expected = student.encode(examples)
    one = sum(value.nbytes for value in student.encode(examples[:1]).values())
    student.pictures = PictureCache(input_bytes=one * room, image_bytes=3 * 56 * 56 * room)
    before = [file.reads for file in files]
    with student.pictures.within_steps(0):
        for _ in range(3):
            for number in range(3):
                student.encode(examples[number : number + 1])
            assert same(student.encode(examples), expected)
        assert student.pictures.stored_input_bytes == one * room
        assert student.pictures.stored_image_bytes == 3 * 56 * 56 * room
        reads = [file.reads - count for file, count in zip(files, before, strict=True)]
        assert reads[:room] == [1] * room
        assert all(count > 1 for count in reads[room:])


def test_a_processor_that_joins_otherwise_is_run_on_whole_batches(student):
    """As one that pads images on the left would be. The images are still decoded once."""
    files = [Counted(seed) for seed in range(2)]
    examples = [file.example() for file in files]

    def process(indices):
        for index in indices:
            assert examples[index].images[0].width
        ids = torch.ones(len(indices), 4, dtype=torch.long)
        return {"input_ids": ids, "pixel_values": torch.full((len(indices), 2), float(len(indices)))}

    cache = PictureCache()
    with cache.within_steps(0):
        for _ in range(3):
            assert same(cache.inputs(examples, process, 0), process([0, 1]))
        assert not cache.joins
        assert cache.stored_input_bytes == 0
    assert [file.reads for file in files] == [1, 1]


def test_inputs_are_padded_as_processors_do():
    parts = [
        {"input_ids": torch.tensor([[5, 6]]), "attention_mask": torch.ones(1, 2), "pixels": torch.ones(1, 1, 2)},
        {"input_ids": torch.tensor([[7, 8, 9]]), "attention_mask": torch.ones(1, 3), "pixels": torch.ones(1, 2, 1)},
    ]
    joined, padded = join_inputs(parts, 3)
    assert padded
    assert joined["input_ids"].tolist() == [[3, 5, 6], [7, 8, 9]]
    assert joined["attention_mask"].tolist() == [[0, 1, 1], [1, 1, 1]]
    assert joined["pixels"].tolist() == [[[1, 1], [0, 0]], [[1, 0], [1, 0]]]
    assert not join_inputs(parts[:1], 3)[1]


def test_a_broken_image_is_the_same_error_within_a_step(student):
    file = Counted(0)
    example = file.example()
    file.content = file.content[: len(file.content) // 2]
    with pytest.raises(UsageError) as outside:
        student.encode([example])
    with student.pictures.within_steps(0):
        for _ in range(2):
            with pytest.raises(UsageError) as inside:
                student.encode([example])
            assert str(inside.value) == str(outside.value)
