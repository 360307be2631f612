"""`reasoning-gym`: any task of the reasoning-gym package, scored by the task's own scorer.

Nine of the scorers evaluate the answer as Python. For these, `evaluation_violation` lets through arithmetic and lists
only. All scorers run in the sandbox.
"""

import ast
import builtins
import json
import re
import warnings
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

EVALUATING_TASKS = frozenset(
    (
        *("binary_matrix", "countdown", "intermediate_integration", "n_queens", "polynomial_multiplication"),
        *("puzzle24", "simple_integration", "spiral_matrix", "string_insertion"),
    )
)
"""Tasks whose scorer evaluates the answer with `eval` or sympy's `parse_expr`."""
_TUPLE_TASKS = frozenset(("arc_agi", "rearc"))
"""Tasks whose scorer compares the tuples of the answer with metadata.output, in which JSON has lists."""
MAX_ANSWER_CHARS = 20_000
MAX_EVALUATED_CHARS = 4_000
MAX_EVALUATED_DEPTH = 40
MAX_EXPONENT = 9999

_ARITHMETIC = frozenset(("abs", "complex", "float", "int", "list", "max", "min", "pow", "round", "sum", "tuple"))
_BUILTINS = frozenset(dir(builtins)) - _ARITHMETIC
_WORDS = re.compile(r"__|\b(?:import|lambda|eval|exec|open|getattr|globals|compile)\b")


class ReasoningGymParameters(Extraction):
    accept: tuple[Place, ...] = Field(
        default=("answer_tag", "boxed", "answer_line", "whole"), min_length=1, description="as for other verifiers"
    )
    task: str = Field(
        default="",
        description="the name of the task, such as countdown; by default metadata.source_dataset of the entry",
    )
    entry: dict[str, Any] | str = Field(
        default_factory=dict,
        description="the item that the task generated, with `metadata` and `answer` (by default the reference of the "
        "item); as JSON text if numbers beyond 2^53 matter",
    )
    config: dict[str, Any] = Field(
        default_factory=dict, description="the configuration of the task, if its scorer needs it"
    )
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
                raise ValueError("entry is JSON text, but not of an object")
            return {**values, "entry": entry}
        if isinstance(values, dict):
            return {**values, "entry": _floats_to_integers(values.get("entry", {}))}
        return values


class ReasoningGymVerifier(Verifier[ReasoningGymParameters]):
    name: ClassVar[str] = "reasoning-gym"
    summary: ClassVar[str] = "a task of the reasoning-gym package, by the task's own scorer"
    parameters: ClassVar[type[ReasoningGymParameters]] = ReasoningGymParameters
    pool: ClassVar[Pool] = "sandbox"
    parameters_in_worker: ClassVar[bool] = True
    tripwire: ClassVar[Literal["error", "wrong", "off"]] = "wrong"

    def warm_up(self) -> None:
        with warnings.catch_warnings():  # where a package that it brings has no bytecode, compiling it warns
            warnings.simplefilter("ignore", SyntaxWarning)
            from reasoning_gym.factory import DATASETS

        for task in DATASETS:
            with suppress(BadParameterError):  # a task without a default configuration has a scorer only with `config`
                _make_scorer(task, "{}")
        _make_scorer("countdown", "{}")(
            "1+2", {"answer": "1+2", "metadata": {"numbers": [1, 2], "target": 3, "source_dataset": "countdown"}}
        )

    def check(self, item: Item, parameters: ReasoningGymParameters, /) -> Verdict:
        assert isinstance(parameters.entry, dict)
        entry = {"question": item.prompt, "metadata": {}, **parameters.entry}
        entry.setdefault("answer", item.reference)
        if not isinstance(entry["metadata"], dict):
            raise BadParameterError("entry", "entry.metadata is not an object: give the item as the task generated it")
        task = parameters.task or entry["metadata"].get("source_dataset", "")
        if task in _TUPLE_TASKS:
            entry["metadata"] = {**entry["metadata"], "output": _lists_to_tuples(entry["metadata"].get("output"))}
        score = _make_scorer(_known_task(task), json.dumps(parameters.config, sort_keys=True))
        extracted = find(item.completion, parameters, item.prompt, verbatim=True)
        answer = extracted.answer
        if answer is None:
            return Verdict.wrong(None, extracted.reason, extracted.rule)
        if len(answer) > MAX_ANSWER_CHARS:
            return Verdict.wrong(None, f"an answer of {len(answer):,} characters, over {MAX_ANSWER_CHARS:,}")
        if task in EVALUATING_TASKS and (violation := evaluation_violation(answer)):
            return Verdict.wrong(answer[:200], f"the answer is not what {task} asks for: {violation}", UNSAFE)
        try:
            reward = float(score(answer, entry))
        except (MemoryError, RecursionError):
            raise
        except Exception as error:
            _check_entry(entry, score)
            return Verdict.wrong(answer, f"the scorer of {task} cannot read the answer ({type(error).__name__})")
        if not 0.0 <= reward <= 1.0:
            raise BadParameterError("entry", f"the scorer of {task} returned {reward!r}, which is no score from 0 to 1")
        return Verdict(reward, reward >= parameters.correct_from, answer, f"{task} scores it {reward:g}")


def evaluation_violation(answer: str) -> str | None:
    """Why `answer` may not be evaluated, or None. Arithmetic, names, calls of names, lists and tuples are allowed."""
    if len(answer) > MAX_EVALUATED_CHARS:
        return f"{len(answer):,} characters, over {MAX_EVALUATED_CHARS:,}"
    depth = max_depth = 0
    for character in answer:
        depth += (character in "([{") - (character in ")]}")
        max_depth = max(max_depth, depth)
    if max_depth > MAX_EVALUATED_DEPTH:
        return f"nested deeper than {MAX_EVALUATED_DEPTH} levels"
    if words := _WORDS.search(answer):
        return f"{words.group()!r} is no part of an answer"
    try:
        tree = ast.parse(answer.strip(), mode="eval")
    except (SyntaxError, ValueError, MemoryError, RecursionError):
        if "(" in answer and ("'" in answer or '"' in answer):
            return "a text handed to a function"
        return _tower_violation(answer)
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
        if isinstance(node, ast.BinOp) and (violation := _operator_violation(node)):
            return violation
    return None


def _operator_violation(node: ast.BinOp) -> str | None:
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


def _tower_violation(answer: str) -> str | None:
    return "a tower of powers or factorials" if _TOWER.search(answer) else None


def _known_task(task: str) -> str:
    from reasoning_gym.factory import DATASETS

    if not task:
        raise BadParameterError("task", "no task is named: set task, or an entry with metadata.source_dataset")
    if task not in DATASETS:
        raise BadParameterError("task", f"reasoning-gym has no task {task[:80]!r}")
    return task


@lru_cache(maxsize=256)
def _make_scorer(task: str, config: str) -> Scorer:
    from reasoning_gym.factory import DATASETS

    dataset_class, config_class = DATASETS[task]
    try:
        task_config = config_class(**json.loads(config))
        if hasattr(task_config, "validate"):
            task_config.validate()
        scorer: Scorer = dataset_class(config=task_config).score_answer
    except (TypeError, ValueError, AssertionError) as error:
        raise BadParameterError("config", f"{task} does not take this config: {error}") from None
    return scorer


def _check_entry(entry: dict[str, Any], score: Scorer) -> None:
    """Raise BadReferenceError if the scorer also fails on the answer of the entry: then the entry is wrong."""
    try:
        score(str(entry["answer"]), entry)
    except Exception as error:
        raise BadReferenceError(
            f"the scorer fails on the answer of this entry ({type(error).__name__}): send the entry as the task "
            "generated it"
        ) from None


def _lists_to_tuples(value: Any) -> Any:
    return tuple(map(_lists_to_tuples, value)) if isinstance(value, list) else value


def _floats_to_integers(value: Any) -> Any:
    """Convert whole floats to integers: a protobuf Struct has floats only."""
    if isinstance(value, float) and value.is_integer() and abs(value) <= 1 << 53:
        return int(value)
    if isinstance(value, dict):
        return {name: _floats_to_integers(inner) for name, inner in value.items()}
    if isinstance(value, list):
        return [_floats_to_integers(inner) for inner in value]
    return value
