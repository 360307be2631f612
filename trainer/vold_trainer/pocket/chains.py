"""Reasoning chains: the steps from an expression to its value, in three styles.

The teacher restates the problem and evaluates it operation by operation. The other teacher removes the brackets and
keeps a running total. The base student does not restate the problem, and knows easy sums only. Every chain ends with a
boxed answer.
"""

import ast
from dataclasses import dataclass

from vold_trainer.pocket.problems import Problem

THINK, END_THINK = "<think>", "</think>"


@dataclass(frozen=True)
class Step:
    """One operation: left operator right = value. operator: + or -."""

    left: int
    operator: str
    right: int
    value: int

    def __str__(self) -> str:
        return f"{self.left}{self.operator}{self.right}={self.value}"


def solution_steps(expression: str) -> list[Step]:
    """The operations that evaluate the expression, inner brackets first, left to right; empty for a single number.

    Raises ValueError if the expression holds anything but integers, +, - and brackets.
    """
    steps: list[Step] = []

    def evaluate(node: ast.expr) -> int:
        match node:
            case ast.Constant(value=int(number)):
                return number
            case ast.UnaryOp(op=ast.USub(), operand=ast.Constant(value=int(number))):
                return -number
            case ast.BinOp(left=left_node, op=ast.Add() | ast.Sub() as operation, right=right_node):
                left, right = evaluate(left_node), evaluate(right_node)
                adds = isinstance(operation, ast.Add)
                value = left + right if adds else left - right
                steps.append(Step(left, "+" if adds else "-", right, value))
                return value
        raise ValueError(f"expression={expression!r} holds more than integers, +, - and brackets")

    evaluate(_parse(expression))
    return steps


def signed_terms(expression: str) -> list[int]:
    """The numbers whose sum is the expression, in reading order. Raises what `solution_steps` raises."""

    def flatten(node: ast.expr, sign: int) -> list[int]:
        match node:
            case ast.Constant(value=int(number)):
                return [sign * number]
            case ast.UnaryOp(op=ast.USub(), operand=ast.Constant(value=int(number))):
                return [-sign * number]
            case ast.BinOp(left=left, op=ast.Add() | ast.Sub() as operation, right=right):
                return flatten(left, sign) + flatten(right, sign if isinstance(operation, ast.Add) else -sign)
        raise ValueError(f"expression={expression!r} holds more than integers, +, - and brackets")

    return flatten(_parse(expression), 1)


def teacher_chain(problem: Problem) -> str:
    """The problem, then one line per operation: "<think>4-(2+1)\\n2+1=3\\n4-3=1</think>\\boxed{1}"."""
    lines = [problem.expression, *map(str, solution_steps(problem.expression))]
    return THINK + "\n".join(lines) + END_THINK + boxed(problem)


def other_teacher_chain(problem: Problem) -> str:
    """The problem, again without brackets, then totals: "<think>4-(2+1) = 4-2-1: 4, -2: 2, -1: 1</think>\\boxed{1}"."""
    terms = signed_terms(problem.expression)
    flat = str(terms[0]) + "".join(f"{term:+d}" for term in terms[1:])
    heading = problem.expression if flat == problem.expression else f"{problem.expression} = {flat}"
    totals = [str(terms[0])]
    for place in range(1, len(terms)):
        totals.append(f"{terms[place]:+d}: {sum(terms[: place + 1])}")
    return f"{THINK}{heading}: {', '.join(totals)}{END_THINK}{boxed(problem)}"


def student_chain(problem: Problem) -> str:
    """The base student's chain for an easy sum, which does not restate it: "<think>\\n4-2=2</think>\\boxed{2}"."""
    lines = ["", *map(str, solution_steps(problem.expression))]
    return THINK + "\n".join(lines) + END_THINK + boxed(problem)


def boxed(problem: Problem) -> str:
    """The boxed answer, with which every chain ends."""
    return f"\\boxed{{{problem.answer}}}"


def _parse(expression: str) -> ast.expr:
    try:
        return ast.parse(expression, mode="eval").body
    except SyntaxError as error:
        raise ValueError(f"expression={expression!r} is not an arithmetic expression: {error.msg}") from error
