"""Items that are judged at once, in the service's own process: plain numbers held against plain numbers.

They are most of what a run on arithmetic asks for, and sending one to a worker costs more than judging it. The
verifier's own code judges them, so the verdict is a worker's. `is_light` lets through only what keeps that code
bounded: one box with a short number in it, and nothing that leads to algebra. It takes time linear in the texts.
"""

import re
import time
from typing import Any

from vold_proto.v1 import verifier_pb2

from vold_verifier.engine import worker
from vold_verifier.reading.extraction import Extraction
from vold_verifier.verifiers.base import Verifier
from vold_verifier.verifiers.math import MathVerifier
from vold_verifier.verifiers.numeric import NumericVerifier

MAX_CHARS = 32_768
MAX_REFERENCE_CHARS = 4_096

_PLAIN = r"[+-]?(?:\d{1,3}(?:,\d{3}){1,5}|\d{1,18})(?:\.\d{1,18})?"
_NUMBER = re.compile(_PLAIN, re.ASCII)
_BOXED = re.compile(r"\\boxed\{ ?" + _PLAIN + r" ?\}", re.ASCII)


def is_light(verifier: Verifier[Any], item: verifier_pb2.VerifyItem) -> bool:
    """Whether `item`, whose parameters are valid, may be judged here."""
    if not isinstance(verifier, MathVerifier | NumericVerifier):
        return False
    completion = item.completion
    if len(completion) > MAX_CHARS or len(item.prompt) > MAX_CHARS or not _plain_reference(item.reference):
        return False
    at = completion.rfind("\\boxed{")
    if at < 0:
        return len(completion) < 64 and _NUMBER.fullmatch(completion.strip()) is not None
    parameters = worker.read_parameters(verifier, item.parameters)
    assert isinstance(parameters, Extraction)
    return (
        parameters.accept[0] == "boxed"
        and _BOXED.match(completion, at) is not None
        and completion.find("boxed") == at + 1
        and "\\fbox" not in completion
        and completion.find(f"{parameters.think_tag}>", at) < 0
    )


def _plain_reference(reference: str) -> bool:
    if len(reference) > MAX_REFERENCE_CHARS or "boxed" in reference:
        return False
    return _NUMBER.fullmatch(reference.rpartition("####")[2].strip()) is not None


def judge(verifier: Verifier[Any], item: verifier_pb2.VerifyItem) -> verifier_pb2.VerifyResult:
    """As a worker does, without its limits."""
    started = time.perf_counter()
    result = worker.check(item, {item.verifier: verifier})
    result.seconds = time.perf_counter() - started
    return result
