"""`code`: the Python program in the completion's last code block, run against tests.

The program runs in the sandbox, each test in a process of its own that `code_runner` starts: it has the tests' inputs
and never the outputs that are expected, which are compared here.
"""

import json
import math
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, TypeAdapter, ValidationError

from vold_verifier.reading.extraction import final_part
from vold_verifier.types import BadReferenceError, Parameters
from vold_verifier.verifiers.base import BadParameterError, Item, NoVerdictError, Pool, Verdict, Verifier

MAX_TESTS = 256
MAX_PROGRAM_CHARS = 100_000
MAX_OUTPUT_BYTES = 1 << 20
_RUNNER = Path(__file__).with_name("code_runner.py")
_FENCE = re.compile(r"^[ \t]*(?P<mark>```+|~~~+)[ \t]*(?P<language>[\w+-]*)[^\n]*$", re.MULTILINE)
_LANGUAGES = frozenset(("", "py", "python", "python3"))


class InputTest(Parameters):
    """The program reads `stdin` and must write `stdout`."""

    stdin: str = ""
    stdout: str


class CallTest(Parameters):
    """A function of the program (or a method of its class Solution) is called, and must return `expected`."""

    call: str = Field(pattern=r"^[A-Za-z_][\w.]*$")
    args: list[Any] = Field(default_factory=list)
    kwargs: dict[str, Any] = Field(default_factory=dict)
    expected: Any


class AssertTest(Parameters):
    """Statements that raise nothing once the program has run. They run beside the program and could be read by it."""

    code: str = Field(min_length=1)


Test = Annotated[InputTest | CallTest | AssertTest, Field(union_mode="left_to_right")]
_tests = TypeAdapter(list[Test])


class CodeParameters(Parameters):
    tests: list[Test] | None = Field(
        default=None,
        max_length=MAX_TESTS,
        description="each {stdin, stdout}, {call, args, kwargs, expected} or {code: statements}; by default the "
        "reference holds them as JSON: such a list, a list of assert statements, or {inputs, outputs, fn_name}",
    )
    setup: str = Field(default="", max_length=MAX_PROGRAM_CHARS, description="Python that runs before the program")
    partial: bool = Field(default=False, description="reward the share of the tests that pass, instead of 0 or 1")
    compare: Literal["lines", "tokens", "exact"] = Field(
        default="lines",
        description="how outputs are compared: lines, without blanks at their ends and blank lines at the end; tokens, "
        "by what stands between blanks, numbers as numbers; exact",
    )
    seconds: float = Field(default=2.0, gt=0, le=30, description="CPU seconds for one test")
    total_seconds: float = Field(default=20.0, gt=0, le=300, description="CPU seconds for all tests")
    memory_mb: int = Field(default=512, ge=64, le=1024, description="address space of the program")
    think_tag: str = Field(default="think", pattern=r"^[A-Za-z][\w-]*$", description="the tag around the thinking")


class CodeVerifier(Verifier[CodeParameters]):
    name: ClassVar[str] = "code"
    summary: ClassVar[str] = "the Python program in the last code block passes the tests"
    parameters: ClassVar[type[CodeParameters]] = CodeParameters
    cost: ClassVar[int] = 32
    pool: ClassVar[Pool] = "sandbox"
    deterministic: ClassVar[bool] = False
    tripwire: ClassVar[Literal["error", "wrong", "off"]] = "off"

    def check(self, item: Item, parameters: CodeParameters, /) -> Verdict:
        tests = parameters.tests if parameters.tests is not None else tests_in(item.reference)
        if not tests:
            raise BadParameterError("tests", "there is no test: a program that is not run earns nothing")
        text = final_part(item.completion, parameters.think_tag, item.prompt)
        if text is None:
            return Verdict.wrong(None, f"the thinking never ends: no </{parameters.think_tag}>")
        program = last_block(text)
        if program is None:
            return Verdict.wrong(None, "no closed block of Python code")
        if len(program) > MAX_PROGRAM_CHARS:
            return Verdict.wrong(None, f"a program of {len(program):,} characters, over {MAX_PROGRAM_CHARS:,}")
        passed, failures = 0, []
        for number, outcome in enumerate(run(program, tests, parameters)):
            fault = judge(tests[number], outcome, parameters.compare)
            passed += fault is None
            if fault is not None:
                failures.append(f"test {number + 1}: {fault}")
        right = passed == len(tests)
        reason = f"{passed} of {len(tests)} tests pass"
        if not parameters.partial and not right:
            reason = "not every test passes"  # the run ends at the first that fails
        reward = passed / len(tests) if parameters.partial else float(right)
        return Verdict(reward, right, program[:2000], "; ".join([reason, *failures[:1]]))


def last_block(text: str) -> str | None:
    """The inside of the last closed fenced block of Python (or of no language), None where there is none."""
    found, opened = None, None
    for match in _FENCE.finditer(text):
        if opened is None:
            opened = match
        elif match["mark"].startswith(opened["mark"]) and not match["language"]:
            if opened["language"].lower() in _LANGUAGES:
                found = text[opened.end() + 1 : match.start()]
            opened = None
    return found if found is None or found.strip() else None


def tests_in(reference: str) -> list[Test]:
    """Tests as the usual data sets write them. Raises BadReferenceError."""
    try:
        value = json.loads(reference)
        if isinstance(value, dict) and "inputs" in value:
            value = list(_of_columns(value))
        elif isinstance(value, dict) and "tests" in value:
            value = value["tests"]
        if isinstance(value, list):
            value = [{"code": one} if isinstance(one, str) else one for one in value]
        tests = _tests.validate_python(value)
    except (ValueError, TypeError, KeyError, RecursionError, ValidationError) as error:
        raise BadReferenceError(
            f"the reference holds no tests ({type(error).__name__}): give a JSON list of "
            '{"stdin": ..., "stdout": ...}, {"call": ..., "args": [...], "expected": ...} or assert statements'
        ) from None
    if len(tests) > MAX_TESTS:
        raise BadReferenceError(f"the reference holds {len(tests)} tests, over the limit of {MAX_TESTS}: send fewer")
    return tests


def _of_columns(value: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """{inputs, outputs, fn_name?}, as APPS and TACO have it."""
    name = value.get("fn_name")
    for given, wanted in zip(value["inputs"], value["outputs"], strict=True):
        if name:
            # These data sets wrap a returned value in a list of one.
            expected = wanted[0] if isinstance(wanted, list) and len(wanted) == 1 else wanted
            yield {"call": name, "args": given, "expected": expected}
        else:
            yield {"stdin": _text(given), "stdout": _text(wanted)}


def _text(value: Any) -> str:
    return "\n".join(map(str, value)) if isinstance(value, list) else str(value)


def run(program: str, tests: list[Test], parameters: CodeParameters) -> list[dict[str, Any]]:
    """What the program did in each test, in order. Raises RuntimeError where the runner itself fails."""
    tasks: list[dict[str, Any]] = []
    for test in tests:
        if isinstance(test, InputTest):
            tasks.append({"kind": "stdin", "stdin": test.stdin, "limit": _bound(test.stdout)})
        elif isinstance(test, CallTest):
            limit = _bound(json.dumps(test.expected))
            tasks.append({"kind": "call", "call": test.call, "args": test.args, "kwargs": test.kwargs, "limit": limit})
        else:
            tasks.append({"kind": "assert", "code": test.code, "limit": 1 << 16})
    outcomes: list[dict[str, Any]] = []
    runner = subprocess.Popen(  # noqa: S603
        [sys.executable, "-I", "-S", str(_RUNNER)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env={},
        start_new_session=True,
    )
    assert runner.stdin is not None
    assert runner.stdout is not None
    try:
        order = {
            "program": program,
            "setup": parameters.setup,
            "seconds": parameters.seconds,
            "total_seconds": parameters.total_seconds,
            "memory_bytes": parameters.memory_mb << 20,
        }
        _say(runner, order)
        for test, task in zip(tests, tasks, strict=True):
            _say(runner, task)
            line = runner.stdout.readline()
            if not line.endswith(b"\n"):
                raise RuntimeError("the runner ended before its tests")
            outcomes.append(json.loads(line))
            if not parameters.partial and judge(test, outcomes[-1], parameters.compare) is not None:
                break
    finally:
        runner.kill()
        runner.stdin.close()
        runner.stdout.close()
        runner.wait()
    return outcomes


def _say(runner: "subprocess.Popen[bytes]", message: dict[str, Any]) -> None:
    assert runner.stdin is not None
    runner.stdin.write(json.dumps(message).encode() + b"\n")
    runner.stdin.flush()


def _bound(expected: str) -> int:
    """How much output is read: some times what is wanted, rounded so that it tells the program nothing."""
    return min(MAX_OUTPUT_BYTES, max(1 << 16, 1 << (4 * len(expected.encode("utf-8", "replace"))).bit_length()))


def judge(test: Test, outcome: dict[str, Any], compare: str) -> str | None:
    """What is wrong with what the program did in `test`, or None. Raises NoVerdictError where nobody can tell."""
    if outcome["ended"] == "starved":
        raise NoVerdictError(f"the program got too little of the CPU to be judged: {outcome['detail']}")
    if outcome["ended"] != "done":
        return str(outcome["detail"])
    if isinstance(test, AssertTest):
        return None
    if isinstance(test, CallTest):
        return None if same_value(outcome["value"], test.expected) else "the value returned is another"
    return None if same_output(outcome["stdout"], test.stdout, compare) else "the output is another"


def same_output(output: str, expected: str, compare: str) -> bool:
    if compare == "exact":
        return output == expected
    if compare == "lines":
        return _lines(output) == _lines(expected)
    given, wanted = output.split(), expected.split()
    return len(given) == len(wanted) and all(map(_same_token, given, wanted))


def _lines(text: str) -> list[str]:
    lines = [line.rstrip() for line in text.splitlines()]
    while lines and not lines[-1]:
        lines.pop()
    return lines


def _same_token(one: str, other: str) -> bool:
    if one == other:
        return True
    try:
        return math.isclose(float(one), float(other), rel_tol=1e-6, abs_tol=1e-9)
    except ValueError:
        return False


def same_value(value: Any, expected: Any) -> bool:
    """Equal as JSON, with numbers as numbers; True is not 1."""
    if isinstance(value, bool) or isinstance(expected, bool):
        return value is expected
    if isinstance(value, int | float) and isinstance(expected, int | float):
        return value == expected or math.isclose(value, expected, rel_tol=1e-9, abs_tol=1e-12)
    if isinstance(value, list) and isinstance(expected, list):
        return len(value) == len(expected) and all(map(same_value, value, expected))
    if isinstance(value, dict) and isinstance(expected, dict):
        return value.keys() == expected.keys() and all(same_value(value[key], expected[key]) for key in value)
    return bool(value == expected)
