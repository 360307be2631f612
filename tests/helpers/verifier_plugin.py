"""A plugin of verifiers that misbehave, for the tests of the pool."""

import hashlib
import os
import signal
import time
from pathlib import Path
from typing import ClassVar

from vold_verifier.verifiers import Item, Parameters, Verdict, Verifier


class SpinVerifier(Verifier[Parameters]):
    """Uses CPU time without end."""

    name: ClassVar[str] = "spin"
    summary: ClassVar[str] = "never ends"

    def check(self, item: Item, parameters: Parameters, /) -> Verdict:
        while True:
            pass


class NativeVerifier(Verifier[Parameters]):
    """Spends its time in one C call, during which no Python signal handler runs."""

    name: ClassVar[str] = "native"
    summary: ClassVar[str] = "never ends, and the soft limit does not interrupt it"

    def check(self, item: Item, parameters: Parameters, /) -> Verdict:
        return Verdict.right(None, hashlib.pbkdf2_hmac("sha256", b"", b"", 10**9).hex())


class StubbornVerifier(Verifier[Parameters]):
    """Ignores the signal of the soft limit, so that only SIGKILL ends it."""

    name: ClassVar[str] = "stubborn"
    summary: ClassVar[str] = "never ends, and ignores the soft limit"

    def check(self, item: Item, parameters: Parameters, /) -> Verdict:
        signal.signal(signal.SIGPROF, signal.SIG_IGN)
        while True:
            time.sleep(1)


class CrashVerifier(Verifier[Parameters]):
    """Kills its own process; if the completion names a file, only until the file exists."""

    name: ClassVar[str] = "crash"
    summary: ClassVar[str] = "kills its worker"

    def check(self, item: Item, parameters: Parameters, /) -> Verdict:
        mark = Path(item.completion) if item.completion else None
        if mark is None or not mark.exists():
            if mark is not None:
                mark.touch()
            os.kill(os.getpid(), signal.SIGSEGV)
        return Verdict.right(None, "survived")


class HogVerifier(Verifier[Parameters]):
    name: ClassVar[str] = "hog"
    summary: ClassVar[str] = "allocates more memory than its limit"

    def check(self, item: Item, parameters: Parameters, /) -> Verdict:
        return Verdict.right(None, str(len(bytearray(8 << 30))))


class BrokenVerifier(Verifier[Parameters]):
    name: ClassVar[str] = "broken"
    summary: ClassVar[str] = "raises"

    def check(self, item: Item, parameters: Parameters, /) -> Verdict:
        raise RuntimeError("a text that may hold anything")


class EchoVerifier(Verifier[Parameters]):
    name: ClassVar[str] = "echo"
    summary: ClassVar[str] = "rewards with the number that the completion is"

    def check(self, item: Item, parameters: Parameters, /) -> Verdict:
        return Verdict(float(item.completion), False, None, "an echo")


class SleepParameters(Parameters):
    seconds: float = 0.1


class SleepVerifier(Verifier[SleepParameters]):
    name: ClassVar[str] = "sleep"
    summary: ClassVar[str] = "waits, then agrees"
    parameters: ClassVar[type[SleepParameters]] = SleepParameters

    def check(self, item: Item, parameters: SleepParameters, /) -> Verdict:
        time.sleep(parameters.seconds)
        return Verdict.right(str(os.getpid()), "slept")


VERIFIERS = [
    SpinVerifier,
    NativeVerifier,
    StubbornVerifier,
    CrashVerifier,
    HogVerifier,
    BrokenVerifier,
    EchoVerifier,
    SleepVerifier,
]
