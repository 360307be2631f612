"""`reasoning-gym`: any task of the reasoning-gym package, judged by the task's own scorer.

Nine of its scorers evaluate the answer as Python. They get nothing but arithmetic and lists to evaluate, see
`program_in`, and all of them run in the sandbox.
"""

import ast
import builtins
import json
import re
from collections.abc import Callable
from contextlib import suppress
from functools import lru_cache
from typing import Any, ClassVar, Literal

from pydantic import Field, model_validator

from vold_verifier.reading.extraction import Extraction, Place, find
from vold_verifier.reading.hacking import UNSAFE
from vold_verifier.types import BadReferenceError
from vold_verifier.verifiers.base import BadParameterError, Item, Pool, Verdict, Verifier

Scorer = Callable[[str, dict[str, Any]], float]

EVALUATING = frozenset(
    (
        *("binary_matrix", "countdown", "intermediate_integration", "n_queens", "polynomial_multiplication"),
        *("puzzle24", "simple_integration", "spiral_matrix", "string_insertion"),
    )
)
"""Tasks whose scorer runs the answer through `eval` or sympy's `parse_expr`."""
_OF_TUPLES = frozenset(("arc_agi", "rearc"))
"""Tasks whose scorer compares the answer's tuples with metadata.output, which JSON has made into lists."""
MAX_ANSWER_CHARS = 20_000
MAX_EVALUATED_CHARS = 4_000
MAX_EVALUATED_DEPTH = 40
MAX_EXPONENT = 9999

_ARITHMETIC = frozenset(("abs", "complex", "float", "int", "list", "max", "min", "pow", "round", "sum", "tuple"))
_BUILTINS = frozenset(dir(builtins)) - _ARITHMETIC
_WORDS = re.compile(r"__|\b(?:import|lambda|eval|exec|open|getattr|globals|compile)\b")


class ReasoningGymParameters(Extraction):
    accept: tuple[Place, ...] = Field(
        default=("answer_tag", "boxed", "answer_line", "whole"), min_length=1, description="as of the other verifiers"
    )
    task: str = Field(default="", description="the task's name, such as countdown; by default the entry's own")
    entry: dict[str, Any] | str = Field(
        default_factory=dict,
        description="the item that the task made, with `metadata` and `answer` (the item's reference by default); as "
        "JSON text where numbers beyond 2^53 matter",
    )
    config: dict[str, Any] = Field(default_factory=dict, description="the task's configuration, where its scorer asks")
    correct_from: float = Field(default=1.0, gt=0, le=1, description="the score from which the verdict is correct")

    @model_validator(mode="before")
    @classmethod
    def _read_entry(cls, values: Any) -> Any:
        if isinstance(values, dict) and isinstance(values.get("entry"), str):
            try:
                entry = json.loads(values["entry"])
            except (ValueError, RecursionError) as error:
                raise ValueError(f"entry is no JSON text: {error}") from None
            if not isinstance(entry, dict):
                raise ValueError("entry is JSON text of something other than an object")
            return {**values, "entry": entry}
        if isinstance(values, dict):
            return {**values, "entry": _whole_numbers(values.get("entry", {}))}
        return values


class ReasoningGymVerifier(Verifier[ReasoningGymParameters]):
    name: ClassVar[str] = "reasoning-gym"
    summary: ClassVar[str] = "a task of the reasoning-gym package, by the task's own scorer"
    parameters: ClassVar[type[ReasoningGymParameters]] = ReasoningGymParameters
    pool: ClassVar[Pool] = "sandbox"
    tripwire: ClassVar[Literal["error", "wrong", "off"]] = "wrong"

    def warm_up(self) -> None:
        from reasoning_gym.factory import DATASETS

        for task in DATASETS:
            with suppress(BadParameterError):  # a task without defaults is made when it is asked for
                _scorer(task, "{}")
        _scorer("countdown", "{}")(
            "1+2", {"answer": "1+2", "metadata": {"numbers": [1, 2], "target": 3, "source_dataset": "countdown"}}
        )

    def check(self, item: Item, parameters: ReasoningGymParameters, /) -> Verdict:
        assert isinstance(parameters.entry, dict)
        entry = {"question": item.prompt, "metadata": {}, **parameters.entry}
        entry.setdefault("answer", item.reference)
        if not isinstance(entry["metadata"], dict):
            raise BadParameterError("entry", "entry.metadata is not an object: give the item as the task made it")
        task = parameters.task or entry["metadata"].get("source_dataset", "")
        if task in _OF_TUPLES:
            entry["metadata"] = {**entry["metadata"], "output": _tuples(entry["metadata"].get("output"))}
        score = _scorer(_known(task), json.dumps(parameters.config, sort_keys=True))
        found = find(item.completion, parameters, item.prompt)
        answer = found.answer
        if answer is None:
            return Verdict.wrong(None, found.reason, found.rule)
        if len(answer) > MAX_ANSWER_CHARS:
            return Verdict.wrong(None, f"an answer of {len(answer):,} characters, over {MAX_ANSWER_CHARS:,}")
        if task in EVALUATING and (fault := program_in(answer)):
            return Verdict.wrong(answer[:200], f"the answer is not what {task} asks for: {fault}", UNSAFE)
        try:
            reward = float(score(answer, entry))
        except (MemoryError, RecursionError):
            raise
        except Exception as error:
            _make_sure_of(entry, score)
            return Verdict.wrong(answer, f"the scorer of {task} cannot read the answer ({type(error).__name__})")
        if not 0.0 <= reward <= 1.0:
            raise BadParameterError("entry", f"the scorer of {task} gave {reward!r}, which is no score from 0 to 1")
        return Verdict(reward, reward >= parameters.correct_from, answer, f"{task} scores it {reward:g}")


def program_in(answer: str) -> str | None:
    """Why `answer` may not be evaluated, or None: arithmetic, names, calls of names, lists and tuples may."""
    if len(answer) > MAX_EVALUATED_CHARS:
        return f"{len(answer):,} characters, over {MAX_EVALUATED_CHARS:,}"
    depth = deepest = 0
    for character in answer:
        depth += (character in "([{") - (character in ")]}")
        deepest = max(deepest, depth)
    if deepest > MAX_EVALUATED_DEPTH:
        return f"nested deeper than {MAX_EVALUATED_DEPTH} levels"
    if words := _WORDS.search(answer):
        return f"{words.group()!r} is no part of an answer"
    try:
        tree = ast.parse(answer.strip(), mode="eval")
    except (SyntaxError, ValueError, MemoryError, RecursionError):
        if "(" in answer and ("'" in answer or '"' in answer):
            return "a text handed to a function"
        return _tower(answer)
    for node in ast.walk(tree):
        if isinstance(
            node,
            ast.Lambda | ast.ListComp | ast.SetComp | ast.DictComp | ast.GeneratorExp | ast.NamedExpr | ast.JoinedStr,
        ):
            return f"a {type(node).__name__} is no part of an answer"
        if isinstance(node, ast.Call) and any(
            isinstance(inner, ast.Constant) and isinstance(inner.value, str) for inner in ast.walk(node)
        ):
            return "a text handed to a function"
        if isinstance(node, ast.Attribute):
            return f"the attribute {node.attr!r} is no part of an answer"
        if isinstance(node, ast.Name) and (node.id.startswith("_") or node.id in _BUILTINS):
            return f"the name {node.id!r} is no part of an answer"
        if isinstance(node, ast.Constant) and isinstance(node.value, int) and node.value.bit_length() > 2000:
            return "a number of more than 600 digits"
        if isinstance(node, ast.BinOp) and (fault := _large(node)):
            return fault
    return None


def _large(node: ast.BinOp) -> str | None:
    if isinstance(node.op, ast.LShift):
        return "a shift is no part of an answer"
    if isinstance(node.op, ast.Pow):
        powers = [inner for inner in ast.walk(node.right) if isinstance(inner, ast.BinOp) and inner is not node]
        if any(isinstance(inner.op, ast.Pow) for inner in powers):
            return "a tower of powers"
        numbers = [inner.value for inner in ast.walk(node.right) if isinstance(inner, ast.Constant)]
        if any(isinstance(number, int | float) and number > MAX_EXPONENT for number in numbers):
            return f"an exponent over {MAX_EXPONENT}"
    if isinstance(node.op, ast.Mult) and any(
        isinstance(side, ast.List | ast.Tuple)
        or (isinstance(side, ast.Constant) and isinstance(side.value, str | bytes))
        for side in (node.left, node.right)
    ):
        return "a repeated list or text is no part of an answer"
    return None


_TOWER = re.compile(r"(?:\^|\*\*)[^+\-/]{0,40}(?:\^|\*\*)|(?:\^|\*\*)\s*\(?\s*\d{5,}|!\s*\)?\s*!|\d{5,}\s*\)?\s*!")


def _tower(answer: str) -> str | None:
    return "a tower of powers or factorials" if _TOWER.search(answer) else None


def _known(task: str) -> str:
    from reasoning_gym.factory import DATASETS

    if not task:
        raise BadParameterError("task", "no task is named: set task, or an entry with metadata.source_dataset")
    if task not in DATASETS:
        raise BadParameterError("task", f"reasoning-gym has no task {task[:80]!r}")
    return task


@lru_cache(maxsize=256)
def _scorer(task: str, config: str) -> Scorer:
    from reasoning_gym.factory import DATASETS

    kind, configuration = DATASETS[task]
    try:
        made = configuration(**json.loads(config))
        if hasattr(made, "validate"):
            made.validate()
        scorer: Scorer = kind(config=made).score_answer
    except (TypeError, ValueError, AssertionError) as error:
        raise BadParameterError("config", f"{task} does not take this config: {error}") from None
    return scorer


def _make_sure_of(entry: dict[str, Any], score: Scorer) -> None:
    """Raises where the scorer fails on the entry's own answer too: then the entry is at fault, not the completion."""
    try:
        score(str(entry["answer"]), entry)
    except Exception as error:
        raise BadReferenceError(
            f"the scorer fails on this entry's own answer ({type(error).__name__}): send the entry as the task made it"
        ) from None


def _tuples(value: Any) -> Any:
    return tuple(map(_tuples, value)) if isinstance(value, list) else value


def _whole_numbers(value: Any) -> Any:
    """A protobuf Struct knows floats only: what is whole was an integer."""
    if isinstance(value, float) and value.is_integer() and abs(value) <= 1 << 53:
        return int(value)
    if isinstance(value, dict):
        return {name: _whole_numbers(inner) for name, inner in value.items()}
    if isinstance(value, list):
        return [_whole_numbers(inner) for inner in value]
    return value
