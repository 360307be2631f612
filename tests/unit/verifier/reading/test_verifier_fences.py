"""Blocks of code around the block that counts: other languages, examples of use, output."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from vold_verifier.reading.fences import Block, closed_blocks
from vold_verifier.verifiers.base import Item
from vold_verifier.verifiers.code import CodeParameters, CodeVerifier, find_program, parse_tests
from vold_verifier.verifiers.json import JsonParameters, JsonVerifier

JSON = JsonVerifier()
FENCES = st.sampled_from(["```", "````", "~~~"])
OTHERS = st.sampled_from(
    ["ts\nconst x = {a: 1}", "bash\nls", "python\nx = {}", "yaml\na: 1", "sql\nSELECT 1", "html\n<p>", "text\n{}"]
)
VALUES = st.dictionaries(
    st.sampled_from("abc"), st.integers(0, 99) | st.sampled_from(["x", "`y`"]), min_size=1, max_size=3
)


def in_fence(fence: str, inside: str) -> str:
    return f"{fence}{inside}\n{fence}"


@settings(max_examples=100, deadline=None)
@given(FENCES, st.lists(OTHERS, max_size=2), st.lists(OTHERS, max_size=2), FENCES, VALUES, VALUES, st.booleans())
def test_the_json_block_counts_among_others(fence, before, after, other_fence, value, other, on_one_line):
    text = json.dumps(value)
    block = f"```json {text}```" if on_one_line else in_fence(fence, f"json\n{text}")
    blocks = [in_fence(other_fence, inside) for inside in before]
    blocks += [in_fence("```", f"json\n{json.dumps(other)}"), block]
    blocks += [in_fence(other_fence, inside) for inside in after]
    completion = "\nand then:\n".join(["First a sketch:", *blocks, "That is all."])
    assert JSON.check(Item(completion, text), JsonParameters()).correct
    assert JSON.check(Item(completion, json.dumps(other)), JsonParameters()).correct == (value == other)


@pytest.mark.parametrize(
    ("text", "blocks"),
    [
        ("```py\nx\n```", [("py", "x\n")]),
        ("```\nx\n```\n```\ny\n```", [("", "x\n"), ("", "y\n")]),
        ("````md\n```py\nx\n```\n````", [("md", "```py\nx\n```\n")]),
        ("```py\nx", []),
        ("a ```b``` c", []),
        ("```json {}```", [("json", " {}")]),
        ("```py\nx = '```'\n```", [("py", "x = '```'\n")]),
        ("~~~py\nx\n```\n~~~", [("py", "x\n```\n")]),
    ],
)
def test_blocks_open_and_close_in_turn(text, blocks):
    assert closed_blocks(text) == [Block(*block) for block in blocks]


SOLUTION = "def add(a, b):\n    return a + b"
CLASS = "class Solution:\n    def add(self, a, b):\n        return a + b"
READS = "a, b = map(int, input().split())\nprint(a + b)"
CALLS = parse_tests(json.dumps([{"call": "add", "args": [1, 2], "expected": 3}]))
ASSERTS = parse_tests(json.dumps(["assert add(1, 2) == 3"]))
OUTPUTS = parse_tests(json.dumps([{"stdin": "1 2\n", "stdout": "3\n"}]))
EXAMPLES = st.sampled_from(
    [
        "python\nprint(add(1, 2))",
        "python\nassert add(5, 5) == 10",
        "\n>>> add(1, 2)\n3",
        "text\n3",
        "bash\npython add.py",
        "\n3",
    ]
)


@settings(max_examples=60, deadline=None)
@given(
    st.sampled_from([(SOLUTION, CALLS), (CLASS, CALLS), (SOLUTION, ASSERTS), (READS, OUTPUTS)]),
    st.lists(EXAMPLES, max_size=3),
    st.sampled_from(["python", "py", "Python", "python3"]),
)
def test_an_example_after_the_solution_does_not_hide_it(solution, examples, language):
    program, tests = solution
    earlier = in_fence("```", f"{language}\n{program.replace('+', '-')}")
    blocks = [earlier, in_fence("```", f"{language}\n{program}"), *(in_fence("```", example) for example in examples)]
    assert find_program("\nExample:\n".join(blocks), tests) == program + "\n"


def test_the_last_block_counts_if_none_has_what_the_tests_use():
    text = "\n".join([in_fence("```", "python\nx = 1"), in_fence("```", "python\ny = 2")])
    assert find_program(text, CALLS) == "y = 2\n"
    assert find_program(in_fence("```", f"\n{SOLUTION}"), CALLS) == SOLUTION + "\n"
    assert find_program("no block", CALLS) is None
    assert find_program(in_fence("```", "python\n  "), CALLS) is None


def test_the_solution_runs_and_a_wrong_one_before_an_example_does_not_pass():
    example = in_fence("```", "python\nprint(add(1, 2))")
    reference = json.dumps([{"call": "add", "args": [5, 5], "expected": 10}])
    for program, correct in ((SOLUTION, True), (SOLUTION.replace("+", "-"), False)):
        completion = f"{in_fence('```', f'python{chr(10)}{program}')}\nExample:\n{example}"
        assert CodeVerifier().check(Item(completion, reference), CodeParameters()).correct is correct
