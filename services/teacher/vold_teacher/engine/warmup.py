"""Run one small batch and one decode step before a backend is ready.

The first forward pass allocates memory, picks kernels and may compile; the first caller should not wait for that. The
warm-up also shows that the model runs on the device that it was loaded to.
"""

import time

import numpy as np

from vold_teacher.backends.base import Backend
from vold_teacher.types import GeneratePrompt, SamplingOptions, ScoreOptions, Sequence

SEQUENCES = 4
LENGTH = 32
DECODE_SECONDS = 60.0
"""Stop waiting for the token after this time: the scores have already shown that the model runs."""


def warm_up(backend: Backend) -> float:
    """Score and decode once. Returns the seconds this took. Blocks: call it on the thread that owns the backend.

    Raises the backend's error: a model that cannot score a few tokens must not be served.
    """
    began = time.monotonic()
    info = backend.info
    tokens = max(2, min(LENGTH, info.max_sequence))
    ids = np.arange(tokens, dtype=np.int32) % info.vocab_size
    split = tokens // 2
    # All have one prompt, so that a backend that shares prompts runs that code too.
    sequences = [Sequence(ids[:split], np.roll(ids[split:], shift), ScoreOptions()) for shift in range(SEQUENCES)]
    for score in backend.score(sequences).scores:
        if isinstance(score, Exception):
            raise score
    if info.capabilities.generate and tokens > split:
        decoder = backend.decoder()
        decoder.add(0, [GeneratePrompt(ids[:split], 0, 1)], SamplingOptions(max_tokens=1), 0)
        while decoder.busy and time.monotonic() - began < DECODE_SECONDS:
            decoder.advance(0.01)
        decoder.cancel(0)
    return time.monotonic() - began
