"""Verifiers that evaluate the completion as Python, for the tests of the sandbox."""

import os
from typing import Any, ClassVar, Literal

from vold_verifier.verifiers import Item, Parameters, Verdict, Verifier


class EvaluateVerifier(Verifier[Parameters]):
    name: ClassVar[str] = "evaluate"
    summary: ClassVar[str] = "runs the completion as Python in its own process, under the tripwire"
    pool: ClassVar[Literal["main", "sandbox", "service"]] = "sandbox"

    def check(self, item: Item, parameters: Parameters, /) -> Verdict:
        names: dict[str, Any] = {"os": os, "result": None}
        exec(item.completion, names)
        return Verdict.right(repr(names["result"]), str(os.getpid()))


class UnwatchedVerifier(EvaluateVerifier):
    name: ClassVar[str] = "evaluate-unwatched"
    tripwire: ClassVar[Literal["error", "wrong", "off"]] = "off"


class SwallowingVerifier(EvaluateVerifier):
    name: ClassVar[str] = "evaluate-swallowing"
    tripwire: ClassVar[Literal["error", "wrong", "off"]] = "wrong"

    def check(self, item: Item, parameters: Parameters, /) -> Verdict:
        try:
            return super().check(item, parameters)
        except BaseException:
            return Verdict.right(None, "nothing happened")


VERIFIERS = [EvaluateVerifier, UnwatchedVerifier, SwallowingVerifier]
