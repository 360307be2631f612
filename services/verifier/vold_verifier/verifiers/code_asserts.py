"""Asserts about a program that the program cannot answer for: `read_asserts`.

`assert f(x) == y` is split. `f(x)` is evaluated in the program's process, which never sees `y`, and its value leaves as
plain data. The condition is evaluated here, in a process that never executes the program. What the program may see is
the call of its own function and what stands in the call's parentheses; everything else of the assert stays here:
operators, constants, and calls of Python's own functions.

    assert f(2) == 4                    the program sees f(2)
    assert abs(f(2) - 1.5) < 1e-6       f(2)
    assert sorted(f(2)) == [1, 4]       sorted(f(2)): the argument holds nothing but the program's own value
    assert Solution().f(2)              Solution().f(2)
    def check(candidate): ...           the asserts in it, for the call check(f) that follows

An assert that compares in the program's process, for example by a function of the test itself, cannot be split. Nor can
one that compares two names that the test does not define: both values would be the program's.
"""

import ast
import builtins
import copy
import math
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from decimal import Decimal
from fractions import Fraction
from functools import lru_cache
from types import CodeType
from typing import Any

_BUILT_IN = frozenset(dir(builtins))
_FUNCTIONS: dict[str, Any] = {
    function.__name__: function
    for function in (
        *(abs, all, any, bool, bytes, complex, dict, divmod, enumerate, float, frozenset, int, isinstance, len, list),
        *(max, min, pow, range, repr, reversed, round, set, sorted, str, sum, tuple, type, zip),
    )
}
"""Python's own functions that a condition may call: none gives access to attributes by name."""
_WRAPPERS = _FUNCTIONS.keys() - {"complex", "divmod", "enumerate", "isinstance", "pow", "range", "type", "zip"} | {
    "next"
}
"""The functions that run in the program's process if their only argument is a value of the program: a generator or an
object of its own does not leave that process as it is."""
_WRAPPER_KEYWORDS = frozenset(("key", "reverse"))
_CONDITION_NODES = (
    *(ast.Constant, ast.List, ast.Tuple, ast.Set, ast.Dict, ast.UnaryOp, ast.BinOp, ast.BoolOp, ast.Compare, ast.IfExp),
    *(ast.Subscript, ast.Slice, ast.Starred, ast.keyword, ast.operator, ast.unaryop, ast.boolop, ast.cmpop),
    ast.expr_context,
)
_VALUE = "value {}"
"""The name of a program's value in a condition: no name of Python."""


class _NotSplitError(Exception):
    """The test compares in the program's process."""


@dataclass(frozen=True, slots=True)
class Asserts:
    """code: the test. prelude: its imports. expressions: what the program's process evaluates, in order. conditions:
    what must be true of their values.
    """

    code: str
    prelude: str
    expressions: tuple[str, ...]
    conditions: tuple[CodeType, ...]

    def failure(self, packed: Any) -> str | None:
        """Why the program fails the asserts, or None. packed: the values of `expressions`, as the runner packs them."""
        try:
            names = _Names(packed)
            for condition in self.conditions:
                if not eval(condition, {"__builtins__": {}}, names):  # noqa: S307 (its nodes are checked)
                    return "AssertionError"
        except _RaisedError as error:
            return str(error)
        except MemoryError:
            raise
        except Exception as error:
            return f"the value is not what the assert works with: {type(error).__name__}"
        return None


def read_asserts(code: str, setup: str = "") -> Asserts | None:
    """Split the asserts in `code`; None if `code` has another statement, or an assert that cannot be split.

    setup: what runs before the program. What it defines is not the program's.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return _Reader(ast.parse(code), *_names_of_setup(setup)).read()
    except (_NotSplitError, SyntaxError, ValueError, RecursionError, MemoryError):
        return None


@lru_cache(maxsize=8)
def _names_of_setup(setup: str) -> tuple[frozenset[str], dict[str, str]]:
    """(the names that it binds, those of `_math_names`): the same for all tests of an item. Do not change them."""
    module = ast.parse(setup)
    return frozenset(_bound_names(module)), _math_names(module)


def _math_names(module: ast.Module) -> dict[str, str]:
    """What its imports make stand for the module `math` ("") or for a function of it (the function's name)."""
    names: dict[str, str] = {}
    for statement in module.body:
        if isinstance(statement, ast.Import):
            names |= {alias.asname or "math": "" for alias in statement.names if alias.name == "math"}
        elif isinstance(statement, ast.ImportFrom) and statement.module == "math":
            names |= {alias.asname or alias.name: alias.name for alias in statement.names}
    return names


class _Reader:
    def __init__(self, test: ast.Module, names_of_setup: frozenset[str], math_of_setup: dict[str, str]) -> None:
        self.test = test
        self.others = {*names_of_setup, *_bound_names(test)}
        """The names that the test or the setup binds: calls of these are not calls of the program."""
        self.math_names = {"math": "", **math_of_setup, **_math_names(test)}
        self.prelude: list[str] = []
        self.expressions: list[str] = []
        self.conditions: list[CodeType] = []

    def read(self) -> Asserts:
        for statement in self._flat(self.test.body):
            if not isinstance(statement, ast.Assert):
                raise _NotSplitError
            self._read_assert(statement.test)
        if not self.expressions:
            raise _NotSplitError
        return Asserts(ast.unparse(self.test), "\n".join(self.prelude), tuple(self.expressions), tuple(self.conditions))

    def _flat(self, body: list[ast.stmt]) -> Iterator[ast.stmt]:
        """The statements that count: without imports, texts, unused constants, and with the asserts of `check`."""
        checks: dict[str, ast.FunctionDef] = {}
        loaded = {node.id for node in ast.walk(self.test) if isinstance(node, ast.Name) and _is_read(node)}
        for statement in body:
            if isinstance(statement, ast.Import | ast.ImportFrom):
                self.prelude.append(ast.unparse(statement))
            elif isinstance(statement, ast.FunctionDef) and _is_check(statement):
                checks[statement.name] = statement
            elif isinstance(statement, ast.Pass) or _is_text(statement) or _is_unused_constant(statement, loaded):
                continue
            elif (call := _call_of_check(statement, checks)) is not None:
                check = checks[call.func.id]  # type: ignore[attr-defined]
                self.others.discard(check.args.args[0].arg)
                function = _Replace(check.args.args[0].arg, call.args[0])
                yield from self._flat([function.visit(copy.deepcopy(each)) for each in check.body])
            else:
                yield statement

    def _read_assert(self, test: ast.expr) -> None:
        if any(isinstance(node, ast.NamedExpr | ast.Await | ast.Yield | ast.YieldFrom) for node in ast.walk(test)):
            raise _NotSplitError
        subject = self._built_in_subject(test)
        if any(len(set(self._names_under_test(operand, subject))) > 1 for operand in _operands(test)):
            raise _NotSplitError  # such as f(2) == sqrt(2) after a star import: both sides would be the program's
        count = len(self.expressions)
        condition = _Splitter(self, subject).visit(copy.deepcopy(test))
        if len(self.expressions) == count and not isinstance(test, ast.Constant):
            raise _NotSplitError  # which of the calls is the program's is not to be seen
        tree = ast.fix_missing_locations(ast.Expression(condition))
        self.conditions.append(compile(tree, "<assert>", "eval"))

    def _built_in_subject(self, test: ast.expr) -> str:
        """The name under test if it is one of Python's own: the assert has one call, and nothing else of a program."""
        names = {node.id for node in ast.walk(test) if isinstance(node, ast.Name)}
        calls = [node for node in ast.walk(test) if isinstance(node, ast.Call)]
        if len(calls) == 1 and isinstance(calls[0].func, ast.Name) and names <= _BUILT_IN:
            return calls[0].func.id
        return ""

    def _names_under_test(self, node: ast.AST, subject: str) -> Iterator[str]:
        """The name of what each of the program's expressions in `node` calls or reads."""
        if not isinstance(node, ast.expr) or not self.is_programs(node, subject):
            for child in ast.iter_child_nodes(node):
                yield from self._names_under_test(child, subject)
            return
        while not isinstance(node, ast.Name):
            if isinstance(node, ast.Call):
                node = node.args[0] if self._is_wrapper(node) and _root(node) != subject else node.func
            else:
                node = node.value  # type: ignore[attr-defined]
        yield node.id

    def is_programs(self, node: ast.expr, subject: str) -> bool:
        """Whether the program's process is to evaluate `node`: a name, a call, or an attribute or element of these."""
        if isinstance(node, ast.Name):
            return node.id == subject or not (node.id in _BUILT_IN or node.id in self.others or node.id == "math")
        if isinstance(node, ast.Attribute | ast.Subscript):
            if not self.is_programs(node.value, subject):
                return False
            if isinstance(node, ast.Subscript) and any(isinstance(each, ast.Call) for each in ast.walk(node.slice)):
                raise _NotSplitError  # such as f(2)[same(f(3), 4)]
            return True
        if not isinstance(node, ast.Call):
            return False
        if self._is_wrapper(node) and node.func.id != subject:  # type: ignore[attr-defined]
            return self.is_programs(node.args[0], subject)
        if not self.is_programs(node.func, subject):
            return False
        if (node.args or node.keywords) and _has_call(node.func) and not _is_method_of_new(node.func):
            raise _NotSplitError  # a method of a value, such as f(2).startswith("a"), would compare in its process
        inner = {_root(each.func) for each in ast.walk(node) if isinstance(each, ast.Call)}
        if inner - _BUILT_IN - self.others - {_root(node.func), "math", ""}:
            raise _NotSplitError  # such as same(f(2), 4)
        return True

    def _is_wrapper(self, call: ast.Call) -> bool:
        """Whether it is a call such as sorted(VALUE, reverse=True), in which nothing can be what VALUE should be."""
        return (
            isinstance(call.func, ast.Name)
            and call.func.id in _WRAPPERS - self.others
            and len(call.args) == 1
            and all(
                keyword.arg in _WRAPPER_KEYWORDS and isinstance(keyword.value, ast.Name | ast.Constant)
                for keyword in call.keywords
            )
        )


class _Splitter(ast.NodeTransformer):
    """Replaces what is the program's by a name, and refuses what a condition may not hold."""

    def __init__(self, reader: _Reader, subject: str) -> None:
        self.reader = reader
        self.subject = subject

    def visit(self, node: ast.AST) -> Any:
        if isinstance(node, ast.expr) and self.reader.is_programs(node, self.subject):
            self.reader.expressions.append(ast.unparse(node))
            return ast.Name(_VALUE.format(len(self.reader.expressions) - 1), ast.Load())
        if isinstance(node, ast.Name):
            function = self.reader.math_names.get(node.id)
            if function:
                return ast.Name(f"math.{function}", ast.Load())
            if node.id in _FUNCTIONS and node.id not in self.reader.others:
                return node
            raise _NotSplitError
        if isinstance(node, ast.Attribute):
            is_math = isinstance(node.value, ast.Name) and self.reader.math_names.get(node.value.id) == ""
            if is_math and not node.attr.startswith("_"):
                return ast.Name(f"math.{node.attr}", ast.Load())
            raise _NotSplitError
        if isinstance(node, ast.Call):
            if not isinstance(node.func, ast.Name | ast.Attribute):
                raise _NotSplitError
        elif not isinstance(node, _CONDITION_NODES):
            raise _NotSplitError
        return self.generic_visit(node)


class _Replace(ast.NodeTransformer):
    def __init__(self, name: str, by: ast.expr) -> None:
        self.name = name
        self.by = by

    def visit_Name(self, node: ast.Name) -> ast.expr:
        if node.id != self.name:
            return node
        if not _is_read(node):
            raise _NotSplitError
        return copy.deepcopy(self.by)


def _operands(test: ast.expr) -> Iterator[ast.expr]:
    """The parts of a condition that `and`, `or` and `not` join."""
    if isinstance(test, ast.BoolOp):
        for operand in test.values:
            yield from _operands(operand)
    elif isinstance(test, ast.UnaryOp) and isinstance(test.op, ast.Not):
        yield from _operands(test.operand)
    else:
        yield test


def _root(node: ast.expr) -> str:
    """The name that a chain of attributes, elements and calls begins with; "" for another expression."""
    while isinstance(node, ast.Attribute | ast.Subscript | ast.Call):
        node = node.func if isinstance(node, ast.Call) else node.value
    return node.id if isinstance(node, ast.Name) else ""


def _has_call(node: ast.expr) -> bool:
    """Whether a chain of attributes, elements and calls has a call."""
    while isinstance(node, ast.Attribute | ast.Subscript):
        node = node.value
    return isinstance(node, ast.Call)


def _is_method_of_new(node: ast.expr) -> bool:
    """Whether it is the method of a new object, such as Solution().f."""
    if not isinstance(node, ast.Attribute) or not isinstance(node.value, ast.Call):
        return False
    return isinstance(node.value.func, ast.Name) and node.value.func.id[:1].isupper()


def _is_read(node: ast.Name) -> bool:
    return isinstance(node.ctx, ast.Load)


def _bound_names(module: ast.Module) -> Iterator[str]:
    for node in ast.walk(module):
        if isinstance(node, ast.Name) and not _is_read(node):
            yield node.id
        elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            yield node.name
        elif isinstance(node, ast.arg):
            yield node.arg
        elif isinstance(node, ast.Import | ast.ImportFrom):
            yield from ((alias.asname or alias.name).partition(".")[0] for alias in node.names)


def _is_check(function: ast.FunctionDef) -> bool:
    """Whether it takes one function and nothing else, as HumanEval's `check(candidate)`."""
    arguments = function.args
    others = (*arguments.posonlyargs, *arguments.kwonlyargs, *arguments.defaults)
    return len(arguments.args) == 1 and not (others or arguments.vararg or arguments.kwarg or function.decorator_list)


def _call_of_check(statement: ast.stmt, checks: dict[str, ast.FunctionDef]) -> ast.Call | None:
    call = statement.value if isinstance(statement, ast.Expr) else None
    if not isinstance(call, ast.Call) or not isinstance(call.func, ast.Name) or call.func.id not in checks:
        return None
    return call if len(call.args) == 1 and isinstance(call.args[0], ast.Name) and not call.keywords else None


def _is_text(statement: ast.stmt) -> bool:
    return isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant)


def _is_unused_constant(statement: ast.stmt, loaded: set[str]) -> bool:
    """Whether it gives a constant to a name that nothing reads, as HumanEval's METADATA."""
    if not isinstance(statement, ast.Assign):
        return False
    names = [target.id for target in statement.targets if isinstance(target, ast.Name)]
    if len(names) != len(statement.targets) or loaded & set(names):
        return False
    try:
        ast.literal_eval(statement.value)
    except (ValueError, TypeError):
        return False
    return True


class _RaisedError(Exception):
    """Evaluating a call raised in the program's process."""


class _Object:
    """A value of the program that is not plain data: equal to nothing but itself."""

    def __init__(self, truth: bool) -> None:
        self.truth = truth

    def __bool__(self) -> bool:
        return self.truth


class _Names(dict[str, Any]):
    """The names of a condition. A value of the program is unpacked when the condition comes to it."""

    def __init__(self, packed: Any) -> None:
        super().__init__(_FUNCTIONS)
        self.packed = packed

    def __missing__(self, name: str) -> Any:
        module, _, function = name.partition(".")
        if module == "math" and function:
            return getattr(math, function)
        outcome = self.packed[int(name.rpartition(" ")[2])]
        if "raised" in outcome:
            raise _RaisedError(str(outcome["raised"])[:200])
        self[name] = value = unpack(outcome["value"])
        return value


def unpack(packed: Any) -> Any:
    """The value that `code_runner.pack` packed. Raises an error of any kind if it did not pack `packed`."""
    if not isinstance(packed, list):
        return packed
    kind, *parts = packed
    (first, *_) = parts
    match kind:
        case "list" | "tuple" | "set" | "frozenset":
            make = {"list": list, "tuple": tuple, "set": set, "frozenset": frozenset}[kind]
            return make(unpack(part) for part in first)
        case "dict":
            return {unpack(key): unpack(value) for key, value in first}
        case "int":
            return int(first, 16)
        case "complex":
            return complex(*parts)
        case "bytes":
            return str(first).encode("latin-1")
        case "range":
            return range(*map(unpack, parts))
        case "fraction":
            return Fraction(*map(unpack, parts))
        case "decimal":
            return Decimal(first)
        case "object":
            return _Object(bool(first))
    raise ValueError("an unknown kind of value")
