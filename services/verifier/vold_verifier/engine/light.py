"""Light items: comparisons of two plain numbers, verified in the service's own process instead of in a worker.

Most items of a run on arithmetic are light, and sending an item to a worker costs more than verifying it. The
verifier's own code runs here as in a worker, so the verdict is the same. `is_light` accepts only items for which that
code takes time linear in the texts: the completion has one box with a short number in it and nothing attached to it, no
answer is marked after the box, and nothing needs algebra.
"""

import re
import time
from typing import Any

from vold_proto.v1 import verifier_pb2

from vold_verifier.engine import worker
from vold_verifier.reading.boxes import has_attachment
from vold_verifier.reading.extraction import Extraction
from vold_verifier.verifiers.base import Verifier
from vold_verifier.verifiers.math import MathVerifier
from vold_verifier.verifiers.numeric import NumericVerifier

MAX_CHARS = 32_768
MAX_REFERENCE_CHARS = 4_096

_PLAIN = r"[+-]?(?:\d{1,3}(?:,\d{3}){1,5}|\d{1,18})(?:\.\d{1,18})?"
_NUMBER = re.compile(_PLAIN, re.ASCII)
_BOXED = re.compile(r"\\boxed\{ ?" + _PLAIN + r" ?\}", re.ASCII)
_ENDS = re.compile(r"[^\n<]*+\s*\Z")


def is_light(verifier: Verifier[Any], item: verifier_pb2.VerifyItem) -> bool:
    """Whether `item`, whose parameters are valid, needs no worker."""
    if not isinstance(verifier, MathVerifier | NumericVerifier):
        return False
    completion = item.completion
    if len(completion) > MAX_CHARS or len(item.prompt) > MAX_CHARS or not _is_plain_reference(item.reference):
        return False
    box_start = completion.rfind("\\boxed{")
    if box_start < 0:
        return len(completion) < 64 and _NUMBER.fullmatch(completion.strip()) is not None
    parameters = worker.read_parameters(verifier, item.parameters)
    assert isinstance(parameters, Extraction)
    box = _BOXED.match(completion, box_start)
    return (
        box is not None
        and parameters.accept[0] == "boxed"
        and completion.find("boxed") == box_start + 1
        and "\\fbox" not in completion
        and "\\framebox" not in completion
        and "\\bbox" not in completion
        and "<|begin_of_box|>" not in completion
        and _ENDS.match(completion, box.end()) is not None
        and not has_attachment(completion, box_start, box.end())
    )


def _is_plain_reference(reference: str) -> bool:
    if len(reference) > MAX_REFERENCE_CHARS or "boxed" in reference:
        return False
    return _NUMBER.fullmatch(reference.rpartition("####")[2].strip()) is not None


def verify(verifier: Verifier[Any], item: verifier_pb2.VerifyItem) -> verifier_pb2.VerifyResult:
    """Verify a light item as a worker does, without a worker's limits."""
    started = time.perf_counter()
    result = worker.verify(item, {item.verifier: verifier})
    result.seconds = time.perf_counter() - started
    return result
