"""Which part of an assert a program sees, and how its values leave its process."""

import json
from decimal import Decimal
from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from vold_verifier.verifiers.code_asserts import read_asserts, unpack
from vold_verifier.verifiers.code_runner import pack

SPLIT = {
    "assert f(2) == 4": "f(2)",
    "assert 4 == f(2), f(2)": "f(2)",
    "assert abs(f(2) - 1.5) < 1e-6": "f(2)",
    "assert round(f(2), 2) == 1.23": "f(2)",
    "assert sorted(f(2), reverse=True) == [4, 1]": "sorted(f(2), reverse=True)",
    "assert set(f(2)) == set([1, 2])": "set(f(2))",
    "assert list(f(2)) == list(range(3))": "list(f(2))",
    "assert Solution().f(2) == 4": "Solution().f(2)",
    "assert f(2)[0].real == 4": "f(2)[0].real",
    "assert not f(2) and f(3) is None": "f(2), f(3)",
    "assert f(lambda x: x + 1, [1]) == [2]": "f(lambda x: x + 1, [1])",
    "assert f(f(2)) == 16": "f(f(2))",
    "assert sum(10, 15) == 6": "sum(10, 15)",
    "assert math.isclose(f(2), 1.5)": "f(2)",
    "from math import isclose as near\nassert near(f(2), 1.5)": "f(2)",
    "def check(candidate):\n    'x'\n    assert candidate(2) == 4\n    assert True\n\ncheck(f)": "f(2)",
    "M = {'a': 1}\nassert f(2) == 4\nassert f(3) == 9": "f(2), f(3)",
}
NOT_SPLIT = [
    "f(2)",
    "assert True",
    "assert f(2",
    "x = f(2)\nassert x == 4",
    "for n in (1, 2):\n    assert f(n) == n",
    "assert [f(n) for n in (1, 2)] == [1, 4]",
    "assert (x := f(2)) == 4",
    "assert same(f(2), 4)",
    "assert difference(f(2), 4) == 0",
    "assert decode(encode('ab')) == 'ab'",
    "assert f(2).startswith('a')",
    "assert f(2).count('a') == 3",
    "assert Solution().f(2).startswith('a')",
    "assert max(f(2), key=lambda n: n == 4)",
    "assert min(f(2), 4) == 4 == g",
    "assert ''.join(f(2)) == 'ab'",
    "assert f(2) == '{0.__class__}'.format(1)",
    "assert f(2) == __import__('os').getpid()",
    "assert f(2) == open('/etc/passwd').read()",
    "assert f(2) == getattr(1, 'real')",
    "assert f(2) == math.__name__",
    "assert sum(sum(1, 2)) == 3",
    "def f(n):\n    return n\nassert f(2) == 2",
    "import helper\nassert helper.same(f(2), 4)",
    "from math import *\nassert isclose(f(2), 4)",
    "def check(c):\n    c = 2\n    assert c == 2\ncheck(f)",
]


@pytest.mark.parametrize("code", SPLIT)
def test_the_program_sees_its_own_calls(code):
    split = read_asserts(code)
    assert split is not None
    assert ", ".join(split.expressions) == SPLIT[code]


@pytest.mark.parametrize("code", NOT_SPLIT)
def test_an_assert_that_would_compare_in_the_programs_process_is_not_split(code):
    split = read_asserts(code)
    # `min(f(2), 4)` is evaluated here, and `g` is the program's.
    assert split is None or (code.endswith("== g") and split.expressions == ("f(2)", "g"))


def test_what_the_setup_defines_is_not_the_programs():
    assert read_asserts("assert same(2) == 4", "def same(n):\n    return n") is None
    assert read_asserts("assert f(Node(1)) == 4", "class Node:\n    pass").expressions == ("f(Node(1))",)
    assert read_asserts("assert near(f(1), 4)", "from math import isclose as near").expressions == ("f(1)",)


@pytest.mark.parametrize(
    ("code", "value", "holds"),
    [
        ("assert f() == (1, 2)", (1, 2), True),
        ("assert f() == (1, 2)", [1, 2], False),
        ("assert f() == [1, 2]", (1, 2), False),
        ("assert f() == {1: 'a'}", {1: "a"}, True),
        ("assert f() == {1: 'a'}", {"1": "a"}, False),
        ("assert f() is True", 1, False),
        ("assert f() == 1", True, True),
        ("assert f() is None", object(), False),
        ("assert f() is not None", object(), True),
        ("assert f() == 1", object(), False),
        ("assert f() - 1 < 2", object(), False),
        ("assert type(f()) == list", [], True),
        ("assert isinstance(f(), (int, float))", "1", False),
        ("assert f() == 1 / 0", 1, False),
        ("assert f() in {1: 2}", [], False),
    ],
)
def test_a_condition_holds_as_in_python(code, value, holds):
    failure = read_asserts(code).failure([{"value": json.loads(json.dumps(pack(value)))}])
    assert (failure is None) == holds, failure


def test_an_error_of_the_program_counts_only_where_python_comes_to_it():
    split = read_asserts("assert f(1) == 1 or f(0) == 1")
    assert split.failure([{"value": 1}, {"raised": "ZeroDivisionError: 0"}]) is None
    assert split.failure([{"value": 2}, {"raised": "ZeroDivisionError: 0"}]) == "ZeroDivisionError: 0"


def test_values_that_no_program_packs_are_failures():
    split = read_asserts("assert f(1) == 1")
    no_values = (["int", "x"], ["list"], [], ["set", [["list", []]]], ["object", 1], ["other", 1])
    for packed in (None, [], {}, 1, "x", [1], [{}], *([{"value": value}] for value in no_values)):
        assert split.failure(packed), packed


keys = st.one_of(st.none(), st.booleans(), st.integers(), st.floats(allow_nan=False), st.text(), st.binary())
hashable = st.recursive(
    st.one_of(keys, st.complex_numbers(allow_nan=False), st.fractions(), st.decimals(allow_nan=False)),
    lambda inner: st.one_of(st.lists(inner, max_size=3).map(tuple), st.frozensets(inner, max_size=3)),
    max_leaves=5,
)
values = st.recursive(
    st.one_of(hashable, st.integers(-(10**30), 10**30), st.builds(range, st.integers(), st.integers())),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(hashable, inner, max_size=3)),
    max_leaves=8,
)


def kinds(value):
    inner = value.items() if isinstance(value, dict) else value if isinstance(value, list | tuple) else ()
    return [type(value), *(kind for each in inner for kind in kinds(each))]


@settings(max_examples=60, deadline=None)
@given(values)
def test_plain_data_leaves_the_process_as_it_is(value):
    left = unpack(json.loads(json.dumps(pack(value))))
    assert left == value
    assert kinds(left) == kinds(value)


def test_subclasses_leave_as_their_plain_types():
    class Always(int):
        __eq__ = lambda *_: True  # noqa: E731
        __hash__ = int.__hash__

    assert pack(Always(3)) == 3
    assert type(unpack(json.loads(json.dumps(pack(Always(3)))))) is int
    assert unpack(pack(Fraction(1, 3))) == Fraction(1, 3)
    assert unpack(pack(Decimal("1.10"))) == Decimal("1.1")
