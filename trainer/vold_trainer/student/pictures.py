"""What a processor makes of prompts with images, stored within a training step.

A step reads each prompt several times: to generate, in the micro-batches of its completions, for log-probabilities
before the update, in diagnostics. Decoding and resizing its images takes far longer than copying the result.

The inputs of a batch are put together from those of its prompts, each processed alone: values of tokens are padded on
the left, any other input is padded with zeros to the largest and concatenated, as the processors of transformers do.
The first batches are processed as a whole too. If that gives anything else, every batch is processed as a whole from
then on, and only the decoded images are stored.
"""

import contextlib
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from vold_trainer.data import Example

INPUT_BYTES = 2 << 30
"""Of the stored inputs: about 100 images of one megapixel for Qwen2.5-VL, in float32."""
IMAGE_BYTES = 1 << 29
"""Of the stored decoded images: about 170 of one megapixel."""

Inputs = dict[str, Tensor]


@dataclass
class _Entry:
    """The example is stored because its id is the key. step: in which the entry was used last."""

    example: Example
    step: int
    inputs: Inputs | None = None
    images: list[Any] = field(default_factory=list)
    input_bytes: int = 0
    image_bytes: int = 0


class PictureCache:
    """Stores nothing outside `within_steps`. Threads may share it. joins: whether the inputs of a batch are made
    from those of its prompts.

    If there is no room, what is stored remains: a step reads its prompts in turn, so that replacing the oldest would
    leave nothing that is read again.
    """

    def __init__(self, input_bytes: int = INPUT_BYTES, image_bytes: int = IMAGE_BYTES) -> None:
        self._limits = (input_bytes, image_bytes)
        self._active = False
        self.joins = True
        self._checked: set[bool] = set()
        self._keep = 0
        self._step = 0
        self._entries: dict[int, _Entry] = {}
        self._lock = threading.Lock()
        self.stored_input_bytes = self.stored_image_bytes = 0

    def __deepcopy__(self, memo: dict[int, Any]) -> "PictureCache":
        """An empty one: the copy of a student has its own steps."""
        return PictureCache(*self._limits)

    @contextlib.contextmanager
    def within_steps(self, ahead: int) -> Iterator[None]:
        """Store inside this block. ahead: how many steps before its update a step's completions are generated."""
        self._active, self._keep = True, ahead
        try:
            yield
        finally:
            with self._lock:
                self._active = False
                for key in list(self._entries):
                    self._forget(key)

    def end_step(self) -> None:
        """Forget what was not read within the last `ahead` steps, and without `ahead` everything."""
        with self._lock:
            self._step += 1
            for key in [key for key, entry in self._entries.items() if self._step - entry.step > self._keep]:
                self._forget(key)

    def _forget(self, key: int) -> None:
        entry = self._entries.pop(key)
        self.stored_input_bytes -= entry.input_bytes
        self.stored_image_bytes -= entry.image_bytes

    def inputs(self, examples: Sequence[Example], process: Callable[[Sequence[int]], Inputs], pad_id: int) -> Inputs:
        """The processor's outputs for these examples, which have images. process: runs the processor on the examples
        of these indices.
        """
        if not self._active:
            return process(range(len(examples)))
        if not self.joins:
            return self._process(examples, range(len(examples)), process)
        parts = [self._inputs_of(index, examples, process) for index in range(len(examples))]
        joined, padded = join_inputs(parts, pad_id)
        if len(parts) > 1 and padded not in self._checked:
            self._checked.add(padded)
            whole = process(range(len(examples)))
            if not _equal(joined, whole):
                self.joins = False
                self._forget_inputs()
                return whole
        return joined

    def _inputs_of(self, index: int, examples: Sequence[Example], process: Callable[[Sequence[int]], Inputs]) -> Inputs:
        example = examples[index]
        with self._lock:
            entry = self._entry(example)
            if entry.inputs is not None:
                return entry.inputs
        inputs = self._process(examples, [index], process)
        size = sum(value.nbytes for value in inputs.values())
        with self._lock:
            entry = self._entry(example)
            if self._active and entry.inputs is None and self.stored_input_bytes + size <= self._limits[0]:
                entry.inputs, entry.input_bytes = inputs, size
                self.stored_input_bytes += size
        return inputs

    def _process(
        self, examples: Sequence[Example], indices: Sequence[int], process: Callable[[Sequence[int]], Inputs]
    ) -> Inputs:
        """Process, with the decoded images stored: a LazyImage decodes no image that still exists."""
        held = [list(examples[index].images) for index in indices]
        inputs = process(indices)
        with self._lock:
            for index, images in zip(indices, held, strict=True):
                size = sum(3 * image.width * image.height for image in images)
                entry = self._entry(examples[index])
                if self._active and not entry.images and self.stored_image_bytes + size <= self._limits[1]:
                    entry.images, entry.image_bytes = images, size
                    self.stored_image_bytes += size
        return inputs

    def _entry(self, example: Example) -> _Entry:
        """The example's entry, used in this step. The lock is held."""
        entry = self._entries.setdefault(id(example), _Entry(example, self._step))
        entry.step = self._step
        return entry

    def _forget_inputs(self) -> None:
        with self._lock:
            for entry in self._entries.values():
                entry.inputs, entry.input_bytes = None, 0
            self.stored_input_bytes = 0


def join_inputs(parts: Sequence[Inputs], pad_id: int) -> tuple[Inputs, bool]:
    """(the inputs of a batch from those of its prompts, whether an image input was padded).

    parts: each of one prompt; input_ids [1, S]. Values of tokens [1, S] are padded on the left, with pad_id in
    input_ids and 0 elsewhere. The other inputs are padded with zeros at the end of each dimension but the first. The
    inputs of a single prompt are not copied.
    """
    if len(parts) == 1:
        return dict(parts[0]), False
    joined, padded = {}, False
    length = max(part["input_ids"].shape[1] for part in parts)
    for name, first in parts[0].items():
        values = [part[name] for part in parts]
        if first.shape == parts[0]["input_ids"].shape:
            fill = pad_id if name == "input_ids" else 0
            values = [pad(value, (length - value.shape[1], 0), value=fill) for value in values]
        elif any(value.shape[1:] != first.shape[1:] for value in values):
            padded = True
            shape = [max(sizes) for sizes in zip(*(value.shape[1:] for value in values), strict=True)]
            values = [_pad_end(value, shape) for value in values]
        joined[name] = torch.cat(values)
    return joined, padded


def _pad_end(value: Tensor, shape: Sequence[int]) -> Tensor:
    """Zeros at the end of each dimension but the first, up to `shape`."""
    return pad(value, [n for size, old in zip(shape[::-1], value.shape[:0:-1], strict=True) for n in (0, size - old)])


def _equal(joined: Inputs, whole: Inputs) -> bool:
    return joined.keys() == whole.keys() and all(
        value.dtype == whole[name].dtype and torch.equal(value, whole[name]) for name, value in joined.items()
    )
