"""`code`: run the Python program in the last code block that has what the tests use.

The program runs in the sandbox. `code_runner` starts a process for each test, and gets only the inputs of the tests.
The expected outputs stay in this process, which compares them, and which executes nothing of the program. Asserts are
split in the same way (`code_asserts`). Those that cannot be split run in the program's process, which could pass them
by other means than a right answer: the verdict is then marked as forgeable, or refused (`strict`).
"""

import ast
import builtins
import json
import math
import re
import subprocess
import sys
import warnings
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, TypeAdapter, ValidationError

from vold_verifier.reading.extraction import final_part
from vold_verifier.reading.fences import closed_blocks
from vold_verifier.types import BadReferenceError, Parameters
from vold_verifier.verifiers.base import BadParameterError, Item, NoVerdictError, Pool, Verdict, Verifier
from vold_verifier.verifiers.code_asserts import Asserts, read_asserts

MAX_TESTS = 256
MAX_PROGRAM_CHARS = 100_000
MAX_OUTPUT_BYTES = 1 << 20
INTEGER_TOLERANCE = 1e-6
"""Of a float beside an integer, however large: an answer that is off by one is wrong."""
_INTEGER = re.compile(r"[+-]?\d{1,4000}", re.ASCII)
_RUNNER = Path(__file__).with_name("code_runner.py")
_LANGUAGES = frozenset(("py", "python", "python3", "python2"))
_BUILT_IN = frozenset(dir(builtins))
_READS_INPUT = re.compile(r"\binput\s*\(|\bstdin\b|\bopen\s*\(\s*0")


class InputTest(Parameters):
    """The program reads `stdin` and must write `stdout`."""

    stdin: str = ""
    stdout: str


class CallTest(Parameters):
    """A call of a function of the program (or of a method of its class Solution), which must return `expected`."""

    call: str = Field(pattern=r"^[A-Za-z_][\w.]*$")
    args: list[Any] = Field(default_factory=list)
    kwargs: dict[str, Any] = Field(default_factory=dict)
    expected: Any


class AssertTest(Parameters):
    """Asserts about the program, or other statements that must not raise after it has run."""

    code: str = Field(min_length=1)


Test = Annotated[InputTest | CallTest | AssertTest, Field(union_mode="left_to_right")]
ReadTest = Test | Asserts
"""A test as it is run: asserts are split, where they can be."""
_TESTS_ADAPTER = TypeAdapter(list[Test])


class CodeParameters(Parameters):
    tests: list[Test] | None = Field(
        default=None,
        max_length=MAX_TESTS,
        description="each is {stdin, stdout}, {call, args, kwargs, expected} or {code: statements}; by default the "
        "reference has the tests as JSON: such a list, a list of assert statements, or {inputs, outputs, fn_name}",
    )
    setup: str = Field(default="", max_length=MAX_PROGRAM_CHARS, description="Python that runs before the program")
    partial: bool = Field(default=False, description="reward the share of tests that pass, instead of 0 or 1")
    compare: Literal["lines", "tokens", "exact"] = Field(
        default="lines",
        description="how outputs are compared: lines, without white space at their ends and empty lines at the end; "
        "tokens between white space, numbers as numbers; exact",
    )
    seconds: float = Field(default=2.0, gt=0, le=30, description="CPU seconds for one test")
    total_seconds: float = Field(default=20.0, gt=0, le=300, description="CPU seconds for all tests")
    memory_mb: int = Field(default=512, ge=64, le=1024, description="address space of the program")
    think_tag: str = Field(default="think", pattern=r"^[A-Za-z][\w-]*$", description="the tag around the thinking")
    strict: bool = Field(default=False, description="refuse tests that a program could pass by forging their result")


class CodeVerifier(Verifier[CodeParameters]):
    name: ClassVar[str] = "code"
    summary: ClassVar[str] = "the Python program in the last code block that has what the tests use passes them"
    parameters: ClassVar[type[CodeParameters]] = CodeParameters
    cost: ClassVar[int] = 32
    pool: ClassVar[Pool] = "sandbox"
    deterministic: ClassVar[bool] = False
    tripwire: ClassVar[Literal["error", "wrong", "off"]] = "off"

    def check(self, item: Item, parameters: CodeParameters, /) -> Verdict:
        tests = parameters.tests if parameters.tests is not None else parse_tests(item.reference)
        if not tests:
            raise BadParameterError("tests", "there is no test: give at least one")
        text = final_part(item.completion, parameters.think_tag, item.prompt)
        if text is None:
            return Verdict.wrong(None, f"the thinking never ends: no </{parameters.think_tag}>")
        program = find_program(text, tests)
        if program is None:
            return Verdict.wrong(None, "no closed block of Python code")
        if len(program) > MAX_PROGRAM_CHARS:
            return Verdict.wrong(None, f"a program of {len(program):,} characters, over {MAX_PROGRAM_CHARS:,}")
        read = read_tests(tests, parameters)
        passed, failures = 0, []
        for number, outcome in enumerate(run_tests(program, read, parameters)):
            failure = find_failure(read[number], outcome, parameters.compare)
            passed += failure is None
            if failure is not None:
                failures.append(f"test {number + 1}: {failure}")
        right = passed == len(tests)
        reason = f"{passed} of {len(tests)} tests pass"
        if not parameters.partial and not right:
            reason = "not every test passes"  # the run ends at the first failure
        reward = passed / len(tests) if parameters.partial else float(right)
        forgeable = any(isinstance(test, AssertTest) for test in read)
        return Verdict(reward, right, program[:2000], "; ".join([reason, *failures[:1]]), forgeable=forgeable)


def read_tests(tests: list[Test], parameters: CodeParameters) -> list[ReadTest]:
    """The tests, with their asserts split. Raises BadParameterError if `strict` refuses one."""
    read = [
        read_asserts(test.code, parameters.setup) or test if isinstance(test, AssertTest) else test for test in tests
    ]
    forgeable = next((number for number, test in enumerate(read) if isinstance(test, AssertTest)), None)
    if parameters.strict and forgeable is not None:
        raise BadParameterError(
            "strict",
            f"test {forgeable + 1} compares in the program's process, which could forge its result: write it as "
            "`assert f(x) == y` or as {call, args, expected}, or leave out strict",
        )
    return read


def find_program(text: str, tests: list[Test]) -> str | None:
    """The last block of Python in `text` that has what `tests` use; None if there is no block with text.

    Tests of calls use a function or class by its name, tests of output use standard input. If no block has it, the last
    block is the program, so that an example of use after the solution does not hide it. Blocks without a language count
    only if no block is marked as Python.
    """
    blocks = closed_blocks(text)
    marked = [block.text for block in blocks if block.language in _LANGUAGES]
    programs = [
        program for program in marked or [block.text for block in blocks if not block.language] if program.strip()
    ]
    names = _names_in_tests(tests)
    for program in reversed(programs):
        if len(program) <= MAX_PROGRAM_CHARS and _has(program, names):
            return program
    return programs[-1] if programs else None


def _names_in_tests(tests: list[Test]) -> frozenset[str]:
    """The names that the tests look up in the program, or its class Solution; empty for tests of output."""
    names: set[str] = set()
    for test in tests:
        if isinstance(test, CallTest):
            names |= {test.call.partition(".")[0], "Solution"}
        elif isinstance(test, AssertTest):
            loaded = (node for node in ast.walk(_parse(test.code)) if isinstance(node, ast.Name))
            names |= {node.id for node in loaded if isinstance(node.ctx, ast.Load)} - _BUILT_IN
    return frozenset(names)


def _has(program: str, names: frozenset[str]) -> bool:
    """Whether `program` defines one of `names`; without names, whether it reads standard input."""
    if not names:
        return _READS_INPUT.search(program) is not None
    return any(
        (isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef) and node.name in names)
        or (isinstance(node, ast.Assign) and any(isinstance(t, ast.Name) and t.id in names for t in node.targets))
        or (isinstance(node, ast.Import | ast.ImportFrom) and any((a.asname or a.name) in names for a in node.names))
        for node in _parse(program).body
    )


def _parse(code: str) -> ast.Module:
    """The syntax tree of `code`; an empty one if it does not parse."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return ast.parse(code)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return ast.Module(body=[], type_ignores=[])


def parse_tests(reference: str) -> list[Test]:
    """Parse tests in the formats of common data sets. Raises BadReferenceError."""
    try:
        value = json.loads(reference)
        if isinstance(value, dict) and "inputs" in value:
            value = list(_tests_from_columns(value))
        elif isinstance(value, dict) and "tests" in value:
            value = value["tests"]
        if isinstance(value, list):
            value = [{"code": test} if isinstance(test, str) else test for test in value]
        tests = _TESTS_ADAPTER.validate_python(value)
    except (ValueError, TypeError, KeyError, RecursionError, ValidationError) as error:
        raise BadReferenceError(
            f"the reference has no tests ({type(error).__name__}): give a JSON list of "
            '{"stdin": ..., "stdout": ...}, {"call": ..., "args": [...], "expected": ...} or assert statements'
        ) from None
    if len(tests) > MAX_TESTS:
        raise BadReferenceError(f"the reference has {len(tests)} tests, over the limit of {MAX_TESTS}: send fewer")
    return tests


def _tests_from_columns(value: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """The tests in {inputs, outputs, fn_name?}, the format of APPS and TACO."""
    name = value.get("fn_name")
    for test_input, output in zip(value["inputs"], value["outputs"], strict=True):
        if name:
            # These data sets wrap a returned value in a list with one element.
            expected = output[0] if isinstance(output, list) and len(output) == 1 else output
            yield {"call": name, "args": test_input, "expected": expected}
        else:
            yield {"stdin": _join_lines(test_input), "stdout": _join_lines(output)}


def _join_lines(value: Any) -> str:
    return "\n".join(map(str, value)) if isinstance(value, list) else str(value)


def run_tests(program: str, tests: list[ReadTest], parameters: CodeParameters) -> list[dict[str, Any]]:
    """The outcome of each test, in order; without `partial`, up to the first failure.

    Raises RuntimeError if the runner itself fails.
    """
    messages = [_test_message(test) for test in tests]
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
        job = {
            "program": program,
            "setup": parameters.setup,
            "seconds": parameters.seconds,
            "total_seconds": parameters.total_seconds,
            "memory_bytes": parameters.memory_mb << 20,
        }
        _send(runner, job)
        for test, message in zip(tests, messages, strict=True):
            _send(runner, message)
            line = runner.stdout.readline()
            if not line.endswith(b"\n"):
                raise RuntimeError("the runner ended before its tests")
            outcomes.append(json.loads(line))
            if not parameters.partial and find_failure(test, outcomes[-1], parameters.compare) is not None:
                break
    finally:
        runner.kill()
        runner.stdin.close()
        runner.stdout.close()
        runner.wait()
    return outcomes


def _test_message(test: ReadTest) -> dict[str, Any]:
    """The message to the runner: everything about `test` but the expected result."""
    if isinstance(test, InputTest):
        return {"kind": "stdin", "stdin": test.stdin, "limit": _output_limit(test.stdout)}
    if isinstance(test, CallTest):
        limit = _output_limit(json.dumps(test.expected))
        return {"kind": "call", "call": test.call, "args": test.args, "kwargs": test.kwargs, "limit": limit}
    if isinstance(test, Asserts):
        limit = _output_limit(test.code)
        return {"kind": "evaluate", "code": test.prelude, "expressions": test.expressions, "limit": limit}
    return {"kind": "assert", "code": test.code, "limit": 1 << 16}


def _send(runner: "subprocess.Popen[bytes]", message: dict[str, Any]) -> None:
    assert runner.stdin is not None
    runner.stdin.write(json.dumps(message).encode() + b"\n")
    runner.stdin.flush()


def _output_limit(expected: str) -> int:
    """The limit on output in bytes: a multiple of the expected length, rounded so that it reveals nothing about it."""
    return min(MAX_OUTPUT_BYTES, max(1 << 16, 1 << (4 * len(expected.encode("utf-8", "replace"))).bit_length()))


def find_failure(test: ReadTest, outcome: dict[str, Any], compare: str) -> str | None:
    """Why the program fails `test`, or None. Raises NoVerdictError if the outcome does not tell."""
    if outcome["ended"] == "starved":
        raise NoVerdictError(f"the program got too little CPU time for a verdict: {outcome['detail']}")
    if outcome["ended"] != "done":
        return str(outcome["detail"])
    if isinstance(test, AssertTest):
        return None
    if isinstance(test, InputTest):
        return None if outputs_equal(outcome["stdout"], test.stdout, compare) else "the output differs"
    try:
        value = json.loads(outcome["value"])
        if isinstance(test, Asserts):
            return test.failure(value)
        return None if values_equal(value, test.expected) else "the returned value differs"
    except (ValueError, RecursionError):
        return "the returned value is not JSON, or nested too deep"


def outputs_equal(output: str, expected: str, compare: str) -> bool:
    if compare == "exact":
        return output == expected
    if compare == "lines":
        return _stripped_lines(output) == _stripped_lines(expected)
    output_tokens, expected_tokens = output.split(), expected.split()
    return len(output_tokens) == len(expected_tokens) and all(map(_tokens_equal, output_tokens, expected_tokens))


def _stripped_lines(text: str) -> list[str]:
    lines = [line.rstrip() for line in text.splitlines()]
    while lines and not lines[-1]:
        lines.pop()
    return lines


def _tokens_equal(token: str, expected: str) -> bool:
    if token == expected:
        return True
    try:
        return _numbers_equal(_read_number(token), _read_number(expected), relative=1e-6, absolute=1e-9)
    except ValueError:
        return False


def _read_number(token: str) -> float:
    """`token` as an int if it is written as one, else as a float. Raises ValueError."""
    return int(token) if _INTEGER.fullmatch(token) is not None else float(token)


def _numbers_equal(value: float, expected: float, *, relative: float, absolute: float) -> bool:
    """Whether two numbers are equal: two integers exactly, an integer and a float within INTEGER_TOLERANCE at most."""
    if value == expected:
        return True
    if isinstance(value, int) and isinstance(expected, int):
        return False
    try:
        close = math.isclose(value, expected, rel_tol=relative, abs_tol=absolute)
        if not close or not (isinstance(value, int) or isinstance(expected, int)):
            return close
        return abs(Fraction(value) - Fraction(expected)) <= INTEGER_TOLERANCE  # a float may have lost the last digits
    except OverflowError:  # an integer beyond the range of floats
        return False


def values_equal(value: Any, expected: Any) -> bool:
    """Whether two JSON values are equal: integers exactly, other numbers within a tolerance; and True is not 1."""
    if isinstance(value, bool) or isinstance(expected, bool):
        return value is expected
    if isinstance(value, int | float) and isinstance(expected, int | float):
        return _numbers_equal(value, expected, relative=1e-9, absolute=1e-12)
    if isinstance(value, list) and isinstance(expected, list):
        return len(value) == len(expected) and all(map(values_equal, value, expected))
    if isinstance(value, dict) and isinstance(expected, dict):
        return value.keys() == expected.keys() and all(values_equal(value[key], expected[key]) for key in value)
    return bool(value == expected)
