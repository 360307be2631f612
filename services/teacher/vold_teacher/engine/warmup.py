"""One small batch and one decode step before a backend is called ready.

The first forward pass allocates, picks kernels and may compile: a probe that says "ready" must not leave that to the
first caller. It also shows that the model can run at all on the device that it was loaded to.
"""

import time

import numpy as np

from vold_teacher.backends.base import Backend
from vold_teacher.types import GeneratePrompt, SamplingOptions, ScoreOptions, Sequence

SEQUENCES = 4
LENGTH = 32
DECODE_SECONDS = 60.0
"""Give up waiting for the one token after this long; the score has shown by then that the model runs."""


def warm_up(backend: Backend) -> float:
    """Score and decode once; returns the seconds it took. Blocks: call it from the thread that owns the backend.

    Raises what the backend raises: a model that cannot score a few tokens must not be served.
    """
    began = time.monotonic()
    info = backend.info
    tokens = max(2, min(LENGTH, info.max_sequence))
    ids = np.arange(tokens, dtype=np.int32) % info.vocab_size
    split = tokens // 2
    # Alike in the prompt, so that a backend which shares prompts goes that way too.
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
