"""Scores a batch with one request per sequence, for backends that wait for another engine."""

import asyncio
from collections.abc import Awaitable, Callable
from collections.abc import Sequence as Seq

from vold_proto.v1 import status_pb2
from vold_service.errors import ServiceError, invalid

from vold_teacher.backends.base import ScoredBatch
from vold_teacher.backends.loop import LoopThread
from vold_teacher.types import Sequence, SequenceScore

ScoreSequence = Callable[[Sequence], Awaitable[SequenceScore]]


def score_batch(
    thread: LoopThread,
    sequences: Seq[Sequence],
    score: ScoreSequence,
    service_error: Callable[[Exception], ServiceError],
) -> ScoredBatch:
    """Run `score` for all sequences on the thread's loop and wait. A sequence that fails has its error as its score.

    service_error: makes a ServiceError of any other exception. If the engine is UNAVAILABLE to a sequence, that error
    is raised for the whole batch: callers retry an UNAVAILABLE request, but take the status of an item as final.
    """

    async def score_or_error(sequence: Sequence) -> SequenceScore | ServiceError:
        try:
            return await score(sequence)
        except ServiceError as error:
            return error
        except Exception as error:
            return service_error(error)

    async def score_all() -> list[SequenceScore | ServiceError]:
        return list(await asyncio.gather(*(score_or_error(sequence) for sequence in sequences)))

    scores = thread.run(score_all())
    for each in scores:
        if isinstance(each, ServiceError) and each.code == status_pb2.UNAVAILABLE:
            raise each
    tokens = sum(len(sequence.prompt) + len(sequence.completion) for sequence in sequences)
    return ScoredBatch(scores, tokens, tokens)


def check_vocabulary(sequence: Sequence, vocab_size: int) -> None:
    """Refuse ids outside the vocabulary: one can crash the whole engine, not only fail its request."""
    for ids in (sequence.prompt, sequence.completion, sequence.candidates):
        if ids is not None and len(ids) and not 0 <= int(ids.min()) <= int(ids.max()) < vocab_size:
            raise invalid("", f"an id is not in 0 to {vocab_size - 1}: compare the tokenizers")
