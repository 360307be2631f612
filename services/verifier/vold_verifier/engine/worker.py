"""The worker process: it verifies items in order, one at a time, each under a limit of CPU time.

A frame on the pipe is a little-endian uint32 with the length, and that many bytes: a VerifyItem to the worker, a
VerifyResult from it. Before the length of a result stands a float32: the seconds of CPU time that the item took, with
its processes. After an item that reached its limit the worker ends: the interrupted computation may have left
caches behind that would change a later verdict. After an item that hit the tripwire the worker ends: the item may have
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
from vold_verifier.types import INVALID, BadReferenceError, Parameters
from vold_verifier.verifiers.base import BadParameterError, Item, NoVerdictError, Verdict, Verifier

EXIT_OUT_OF_MEMORY = 3
"""Exit status of a worker that reached its memory limit."""
EXIT_TRIPWIRE = 4
"""Exit status of a sandboxed worker after an item that hit the tripwire."""
MAX_PROCESSES = 512

HEADER = struct.Struct("<I")
RESULT_HEADER = struct.Struct("<fI")
MAX_EXTRACTED_CHARS = 2000

log = logging.getLogger("vold.verifier.worker")


class CpuLimitError(BaseException):
    """Raised by the timer. Not an Exception, so that an `except Exception` in a library does not swallow it."""


def limit_memory(limit_bytes: int) -> None:
    """Limit the process to `limit_bytes` of address space, and turn core files off."""
    resource.setrlimit(resource.RLIMIT_AS, (limit_bytes, limit_bytes))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def limit_resources(limit_bytes: int) -> None:
    """Set the limits of a sandboxed worker: those of `limit_memory`, no file writes, few processes and open files."""
    limit_memory(limit_bytes)
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
    resource.setrlimit(resource.RLIMIT_NOFILE, (256, 256))
    resource.setrlimit(resource.RLIMIT_NPROC, (MAX_PROCESSES, MAX_PROCESSES))


class Timer:
    """The CPU-time limit of one item, as a context manager. Raises CpuLimitError inside the block.

    Python runs a signal handler between bytecodes, so it does not interrupt a long C call: a second timer, whose signal
    has no handler, ends the process at twice the limit.
    """

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self.armed = False
        signal.signal(signal.SIGPROF, self._on_signal)

    def __enter__(self) -> None:
        self.armed = True
        # The timer repeats, in case a bare `except:` swallows the first CpuLimitError.
        signal.setitimer(signal.ITIMER_PROF, self.seconds, self.seconds / 10)
        signal.setitimer(signal.ITIMER_VIRTUAL, 2 * self.seconds)

    def __exit__(self, *error: object) -> None:
        self.armed = False
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        if self.armed:  # a signal may still arrive after the block
            raise CpuLimitError


def serve(
    connection: socket.socket,
    verifiers: Mapping[str, Verifier[Any]],
    cpu_seconds: float,
    tripwire: Tripwire | None = None,
) -> int:
    """Verify items from `connection` until it closes, an item reaches its limit, or an item hits the tripwire.

    Returns the exit status. Call it in the main thread: it handles signals.
    """
    timer = Timer(cpu_seconds)
    tripwire = tripwire or Tripwire()
    reader = connection.makefile("rb")
    while (frame := _read_frame(reader)) is not None:
        started, cpu_started = time.perf_counter(), _cpu_seconds()
        result, reusable = verify_within_limits(verifier_pb2.VerifyItem.FromString(frame), verifiers, timer, tripwire)
        result.seconds = time.perf_counter() - started
        reply = result.SerializeToString()
        connection.sendall(RESULT_HEADER.pack(_cpu_seconds() - cpu_started, len(reply)) + reply)
        if not reusable:
            return EXIT_TRIPWIRE if tripwire.hit else 0
    return 0


def _cpu_seconds() -> float:
    """CPU seconds of this process and of its processes that have ended."""
    used = (resource.getrusage(resource.RUSAGE_SELF), resource.getrusage(resource.RUSAGE_CHILDREN))
    return sum(each.ru_utime + each.ru_stime for each in used)


def _read_frame(reader: BinaryIO) -> bytes | None:
    header = reader.read(HEADER.size)
    if len(header) < HEADER.size:
        return None
    (size,) = HEADER.unpack(header)
    frame = reader.read(size)
    return frame if len(frame) == size else None


def verify_within_limits(
    item: verifier_pb2.VerifyItem, verifiers: Mapping[str, Verifier[Any]], timer: Timer, tripwire: Tripwire
) -> tuple[verifier_pb2.VerifyResult, bool]:
    """Return the result, and whether the worker may verify another item."""
    on_hit = verifiers[item.verifier].tripwire
    result = None
    try:
        with timer:
            tripwire.armed = on_hit != "off"
            try:
                result = verify(item, verifiers)
            finally:
                tripwire.armed = False
    except TripwireError:
        pass
    except CpuLimitError:
        message = f"verifier {item.verifier} used {timer.seconds:g} s of CPU time, the limit for one item"
        return error_result(status_pb2.DEADLINE_EXCEEDED, message), False
    if result is not None and not tripwire.hit:
        return result, True
    message = f"verifying the completion tried {tripwire.hit}, which the sandbox stopped"
    if on_hit == "wrong":
        return verdict_result(Verdict.wrong(None, f"the answer is a program: {message}", UNSAFE)), False
    return error_result(status_pb2.PERMISSION_DENIED, message), False


def verify(item: verifier_pb2.VerifyItem, verifiers: Mapping[str, Verifier[Any]]) -> verifier_pb2.VerifyResult:
    """Return the verdict on one item, or the error that prevented a verdict. There is no time limit."""
    verifier = verifiers[item.verifier]
    try:
        parameters = read_parameters(verifier, item.parameters)
        verdict = verifier.check(Item(item.completion, item.reference, item.prompt), parameters)
        return verdict_result(verdict)
    except BadReferenceError as error:
        return error_result(status_pb2.INVALID_ARGUMENT, str(error), "reference")
    except BadParameterError as error:
        return error_result(status_pb2.INVALID_ARGUMENT, str(error), f"parameters.{error.field}")
    except ValidationError as error:
        field, message = first_error(error)
        return error_result(status_pb2.INVALID_ARGUMENT, message, field, INVALID)
    except NoVerdictError as error:
        return error_result(status_pb2.UNAVAILABLE, str(error))
    except MemoryError:
        raise  # the worker may have grown, not the item: the pool tries the item in another worker
    except Exception as error:
        # The text of a library's error is not logged: rendering a parsed expression can itself hang or fail.
        log.warning("verifier %s failed on an item with %s", item.verifier, type(error).__name__)
        return error_result(
            status_pb2.INTERNAL, f"verifier {item.verifier} failed with {type(error).__name__} on this item"
        )


def read_parameters(verifier: Verifier[Any], parameters: Struct) -> Parameters:
    """Parse `parameters` into the verifier's own model. Raises pydantic.ValidationError."""
    return _parse_parameters(verifier.parameters, parameters.SerializeToString(deterministic=True))


@lru_cache(maxsize=512)
def _parse_parameters(model: type[Parameters], packed: bytes) -> Parameters:
    return model.model_validate(MessageToDict(Struct.FromString(packed)))


def first_error(error: ValidationError) -> tuple[str, str]:
    """Return the first invalid field, as a path from `parameters`, and a message with its value."""
    first = error.errors(include_url=False)[0]
    field = ".".join(["parameters", *(str(part) for part in first["loc"])])
    value = "" if first["type"] == "missing" else f"; got {shorten(repr(first.get('input')))[1:-1]}"
    return field, f"{field}: {first['msg']}{value}"


def verdict_result(verdict: Verdict) -> verifier_pb2.VerifyResult:
    result = verifier_pb2.VerifyResult(
        reward=verdict.reward, correct=verdict.correct, reason=_without_surrogates(verdict.reason)
    )
    if verdict.forgeable:
        result.forgeable = True
    if verdict.rule:
        result.rule = verdict.rule
    if verdict.extracted is not None:
        result.extracted = _without_surrogates(verdict.extracted[:MAX_EXTRACTED_CHARS])
    return result


def error_result(code: "status_pb2.Code", message: str, field: str = "", reason: str = "") -> verifier_pb2.VerifyResult:
    """reason: `INVALID` if the item is refused as the service itself would refuse it, before it is verified."""
    return verifier_pb2.VerifyResult(
        error=status_pb2.Status(code=code, message=_without_surrogates(message), field=field, reason=reason)
    )


def _without_surrogates(text: str) -> str:
    """Replace lone surrogates, which protobuf cannot carry."""
    return text if text.isascii() else text.encode("utf-8", "replace").decode("utf-8")
