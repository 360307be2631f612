"""The worker process: items in, results out, one at a time, in order, under a limit of CPU time for each.

Frames on the pipe are a little-endian uint32 of length and that many bytes: a VerifyItem in, a VerifyResult out.
After an item that ran into its limit the worker leaves, because an interrupted computation may have left caches
behind that a later verdict would depend on. After one that tripped the sandbox's wire it leaves, because it may have
left anything behind.
"""

import logging
import resource
import signal
import socket
import struct
import time
from collections.abc import Mapping
from functools import lru_cache
from types import FrameType
from typing import Any, BinaryIO

from google.protobuf.json_format import MessageToDict
from google.protobuf.struct_pb2 import Struct
from pydantic import ValidationError
from vold_proto.v1 import status_pb2, verifier_pb2

from vold_verifier.reading.hacking import UNSAFE
from vold_verifier.reading.text import shorten
from vold_verifier.sandbox.tripwire import Tripwire, TripwireError
from vold_verifier.types import BadReferenceError, Parameters
from vold_verifier.verifiers.base import BadParameterError, Item, NoVerdictError, Verdict, Verifier

EXIT_OUT_OF_MEMORY = 3
"""Status of a worker that ran into its memory limit."""
EXIT_TRIPWIRE = 4
"""Status of a sandboxed worker after an item that did what no scorer does."""
MAX_PROCESSES = 512

HEADER = struct.Struct("<I")
MAX_EXTRACTED_CHARS = 2000

log = logging.getLogger("vold.verifier.worker")


class CpuLimitError(BaseException):
    """Raised by the timer. Not an Exception, so that a library's own `except Exception` does not swallow it."""


def limit_memory(limit_bytes: int) -> None:
    """No more than `limit_bytes` of address space, and no core files."""
    resource.setrlimit(resource.RLIMIT_AS, (limit_bytes, limit_bytes))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def limit_sandboxed(limit_bytes: int) -> None:
    """As `limit_memory`; and no file can grow, and processes and open files are few."""
    limit_memory(limit_bytes)
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
    resource.setrlimit(resource.RLIMIT_NOFILE, (256, 256))
    resource.setrlimit(resource.RLIMIT_NPROC, (MAX_PROCESSES, MAX_PROCESSES))


class Timer:
    """The CPU-time limit of the item at hand. A shot that arrives once the item is done changes nothing.

    Python runs a signal's handler between bytecodes, so code inside one long C call is not interrupted: a second
    timer, whose signal has no handler, ends the process at twice the limit.
    """

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self.armed = False
        signal.signal(signal.SIGPROF, self._shot)

    def __enter__(self) -> None:
        self.armed = True
        # It repeats, for the case that a bare `except:` swallows the first shot.
        signal.setitimer(signal.ITIMER_PROF, self.seconds, self.seconds / 10)
        signal.setitimer(signal.ITIMER_VIRTUAL, 2 * self.seconds)

    def __exit__(self, *error: object) -> None:
        self.armed = False
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)

    def _shot(self, number: int, frame: FrameType | None) -> None:
        if self.armed:
            raise CpuLimitError


def run(
    connection: socket.socket,
    verifiers: Mapping[str, Verifier[Any]],
    cpu_seconds: float,
    tripwire: Tripwire | None = None,
) -> int:
    """Serve `connection` until it closes or an item runs into its limit or trips the wire. Main thread only (signals).

    Returns the exit status that tells why.
    """
    timer = Timer(cpu_seconds)
    tripwire = tripwire or Tripwire()
    reader = connection.makefile("rb")
    while (frame := _read_frame(reader)) is not None:
        started = time.perf_counter()
        result, healthy = check_within(verifier_pb2.VerifyItem.FromString(frame), verifiers, timer, tripwire)
        result.seconds = time.perf_counter() - started
        reply = result.SerializeToString()
        connection.sendall(HEADER.pack(len(reply)) + reply)
        if not healthy:
            return EXIT_TRIPWIRE if tripwire.hit else 0
    return 0


def _read_frame(reader: BinaryIO) -> bytes | None:
    header = reader.read(HEADER.size)
    if len(header) < HEADER.size:
        return None
    (size,) = HEADER.unpack(header)
    frame = reader.read(size)
    return frame if len(frame) == size else None


def check_within(
    item: verifier_pb2.VerifyItem, verifiers: Mapping[str, Verifier[Any]], timer: Timer, tripwire: Tripwire
) -> tuple[verifier_pb2.VerifyResult, bool]:
    """(the result, whether the worker is fit for another item)."""
    on_hit = verifiers[item.verifier].tripwire
    result = None
    try:
        with timer:
            tripwire.armed = on_hit != "off"
            try:
                result = check(item, verifiers)
            finally:
                tripwire.armed = False
    except TripwireError:
        pass
    except CpuLimitError:
        message = f"verifier {item.verifier} used {timer.seconds:g} s of CPU time, the limit for one item"
        return failed(status_pb2.DEADLINE_EXCEEDED, message), False
    if result is not None and not tripwire.hit:
        return result, True
    message = f"judging the completion tried {tripwire.hit}, which the sandbox stopped"
    if on_hit == "wrong":
        return verdict_result(Verdict.wrong(None, f"the answer is a program: {message}", UNSAFE)), False
    return failed(status_pb2.PERMISSION_DENIED, message), False


def check(item: verifier_pb2.VerifyItem, verifiers: Mapping[str, Verifier[Any]]) -> verifier_pb2.VerifyResult:
    """The verdict on one item, or why there is none. Takes as long as the verifier does."""
    verifier = verifiers[item.verifier]
    try:
        parameters = read_parameters(verifier, item.parameters)
        verdict = verifier.check(Item(item.completion, item.reference, item.prompt), parameters)
        return verdict_result(verdict)
    except BadReferenceError as error:
        return failed(status_pb2.INVALID_ARGUMENT, str(error), "reference")
    except BadParameterError as error:
        return failed(status_pb2.INVALID_ARGUMENT, str(error), f"parameters.{error.field}")
    except ValidationError as error:
        field, message = first_error(error)
        return failed(status_pb2.INVALID_ARGUMENT, message, field)
    except NoVerdictError as error:
        return failed(status_pb2.UNAVAILABLE, str(error))
    except MemoryError:
        raise  # it may be the worker that has grown, not the item: another worker has to tell
    except Exception as error:
        # The text of a library's error is not logged: rendering a parsed expression can hang or fail by itself.
        log.warning("verifier %s failed on an item with %s", item.verifier, type(error).__name__)
        return failed(status_pb2.INTERNAL, f"verifier {item.verifier} failed with {type(error).__name__} on this item")


def read_parameters(verifier: Verifier[Any], parameters: Struct) -> Parameters:
    """`parameters` as the verifier's own model. Raises pydantic.ValidationError."""
    return _parameters(verifier.parameters, parameters.SerializeToString(deterministic=True))


@lru_cache(maxsize=512)
def _parameters(model: type[Parameters], packed: bytes) -> Parameters:
    return model.model_validate(MessageToDict(Struct.FromString(packed)))


def first_error(error: ValidationError) -> tuple[str, str]:
    """(field as a path from `parameters`, message with the value) of the first fault in some parameters."""
    first = error.errors(include_url=False)[0]
    field = ".".join(["parameters", *(str(part) for part in first["loc"])])
    value = "" if first["type"] == "missing" else f"; got {shorten(repr(first.get('input')))[1:-1]}"
    return field, f"{field}: {first['msg']}{value}"


def verdict_result(verdict: Verdict) -> verifier_pb2.VerifyResult:
    result = verifier_pb2.VerifyResult(reward=verdict.reward, correct=verdict.correct, reason=_sendable(verdict.reason))
    if verdict.rule:
        result.rule = verdict.rule
    if verdict.extracted is not None:
        result.extracted = _sendable(verdict.extracted[:MAX_EXTRACTED_CHARS])
    return result


def failed(code: "status_pb2.Code", message: str, field: str = "") -> verifier_pb2.VerifyResult:
    return verifier_pb2.VerifyResult(error=status_pb2.Status(code=code, message=_sendable(message), field=field))


def _sendable(text: str) -> str:
    """`text` without lone surrogates, which protobuf cannot carry."""
    return text if text.isascii() else text.encode("utf-8", "replace").decode("utf-8")
