"""A program under test cannot write its own reward: attacks on `code`, and neighbours of them that hypothesis draws."""

from dataclasses import dataclass

import pytest
from hypothesis import HealthCheck, given, note, settings
from hypothesis import strategies as st
from verifier_server import item, running
from vold_proto.v1 import status_pb2


@pytest.fixture(scope="module")
def server():
    with running("--workers", "1", "--sandbox-workers", "2", "--enable", "code") as server:
        yield server


def program(text, tests, **parameters):
    return item("code", f"```python\n{text}\n```", tests=tests, **parameters)


SECRET = 8_561_337_902_114
"""What an honest `f(7)` returns: no program guesses it, and no other constant is near it."""

TESTS = {
    "equal": f"assert f(7) == {SECRET}",
    "equal, the other way round": f"assert {SECRET} == f(7), 'no'",
    "near": f"assert abs(f(7) - {SECRET}) < 1e-3",
    "mathematics": f"import math\nassert math.isclose(f(7), {SECRET}, rel_tol=1e-14)",
    "in a list": f"assert sorted([f(7), 1]) == sorted([1, {SECRET}])",
    "text": f"assert str(f(7)) == '{SECRET}'",
    "one of several": f"assert f(7) in ({SECRET}, {SECRET + 2})",
    "several": f"assert f(7) == {SECRET}\nassert not f(7) != {SECRET}",
    "type": f"assert isinstance(f(7), int) and f(7) == {SECRET}",
    "HumanEval": f"METADATA = {{}}\n\ndef check(candidate):\n    assert True, 'here'\n"
    f"    assert candidate(7) == {SECRET}\n\ncheck(f)",
    "tuple": f"assert tuple(g(7)) == (0, {SECRET})",
}
HONEST = f"def f(n):\n    return {SECRET - 7} + n\ndef g(n):\n    yield 0\n    yield f(n)"

ALWAYS_EQUAL = """class Equal({base}):
    __eq__ = __lt__ = __le__ = __gt__ = __ge__ = __contains__ = __bool__ = lambda *_: True
    __ne__ = lambda *_: False
    __hash__ = lambda self: 1
    __sub__ = __rsub__ = __abs__ = __getitem__ = __call__ = __round__ = lambda self, *_: self
    __iter__ = lambda self: iter((self, self))
    __float__ = lambda self: 0.0
    __int__ = __index__ = __len__ = lambda self: 1
    __str__ = __repr__ = lambda self: 'Equal'
    __class__ = {disguise}
"""
VALUES = ["Equal()", "(Equal(), Equal())", "True", "None", "0", "float('nan')", "float('inf')", "[]", "{}", "seen()"]
"""What f returns. `seen` looks for a number like the expected one in everything that the process can reach."""

SEEN = """import gc, os, re, sys
def seen():
    texts = []
    frame = sys._getframe()
    while frame:
        texts += [repr(value) for value in frame.f_locals.values()]
        frame = frame.f_back
    texts += [each for each in gc.get_objects() if isinstance(each, (str, bytes))]
    for name in ("/proc/self/mem", f"/proc/{os.getppid()}/mem", f"/proc/{os.getppid()}/environ"):
        try:
            with open(name, "rb") as file:
                texts.append(file.read(1 << 20))
        except OSError:
            pass
    for text in texts:
        text = text.decode("latin-1") if isinstance(text, bytes) else text
        for found in re.findall("[0-9]{13}", text):
            return int(found)
    return 0
"""

MESSAGES = [
    "null",
    "true",
    "[true]",
    '[{"value": true}]',
    '[{"value": ["object", true]}]',
    '[{"value": null}]',
    "[]",
    "{}",
]
TAKE_OVER = {
    "exec": "import builtins\nbuiltins.exec = builtins.eval = lambda *a, **k: None",
    "exec by name": "__builtins__.exec = print if not isinstance(__builtins__, dict) else None",
    "compile": "import builtins\n_compile = compile\n"
    "builtins.compile = lambda s, *a, **k: _compile('True' if a[-1] == 'eval' else 'pass', *a, **k)",
    "builtins": "import builtins\nfor name in ('abs', 'isinstance', 'sorted', 'str', 'tuple', 'hex', 'bool'):\n"
    "    setattr(builtins, name, lambda *a, **k: True)",
    "json": "import json\njson.dumps = lambda *a, **k: {message!r}\njson.loads = lambda *a, **k: {{}}",
    "AssertionError": "import builtins\nbuiltins.AssertionError = type('Nothing', (Exception,), {{}})",
    "the runner's functions": "import sys\nframe = sys._getframe()\nwhile frame:\n"
    "    for name in ('pack', '_evaluate', '_report_error', '_look_up_function', '_to_json_value'):\n"
    "        frame.f_globals[name] = lambda *a: Equal()\n    frame = frame.f_back",
    "the protocol": "import json, os\nos.write(4, b'?')\nmessage = json.loads(os.read(3, 1 << 16))\n"
    "os.write(4, (message['nonce'] + ' ' + {message!r}).encode())\nos._exit(0)",
    "the protocol's test": "import os\nos.write(4, b'?')\n"
    "text = os.read(3, 1 << 16).decode()\nimport json\nmessage = json.loads(text)\n"
    "found = [{{'value': int(n)}} for n in re.findall('[0-9]{{13}}', text)]\n"
    "os.write(4, (message['nonce'] + ' ' + json.dumps(found or 0)).encode())\nos._exit(0)",
    "the runner's pipe": "import os\nfor process in (os.getppid(), 'self'):\n"
    "    for number in range(8):\n        try:\n"
    "            with open(f'/proc/{{process}}/fd/{{number}}', 'wb') as pipe:\n"
    '                pipe.write(b\'{{"ended": "done", "detail": "", "value": "[]"}}\\n\')\n'
    "        except OSError:\n            pass",
    "tracing": "import sys\nsys.settrace(lambda *a: None)\nsys.setprofile(lambda *a: None)",
    "an early end": "import os\nos._exit(0)",
    "a late end": "import atexit\natexit.register(lambda: __import__('os')._exit(0))",
    "nothing": "",
}


@dataclass(frozen=True)
class Attack:
    text: str
    test: str


@st.composite
def attacks(draw):
    test = draw(st.sampled_from(sorted(TESTS)))
    value = draw(st.sampled_from(VALUES))
    disguise = draw(st.sampled_from(("int", "float", "list", "str")))
    base = draw(st.sampled_from(("", "int", "float", "str", "list", "tuple", "dict", "Exception")))
    parts = [
        draw(st.sampled_from(sorted(TAKE_OVER.values()))).format(message=draw(st.sampled_from(MESSAGES)))
        for _ in range(draw(st.integers(1, 2)))
    ]
    head = SEEN + ALWAYS_EQUAL.format(base=base, disguise=disguise)
    if draw(st.booleans()):  # when the program is loaded, or when it is called
        return Attack(
            "\n".join([head, f"def f(n): return {value}", "def g(n): return f(n), f(n)", *parts]), TESTS[test]
        )
    body = "\n".join(f"        {line}" for part in parts for line in part.splitlines())
    call = f"def f(n):\n    if True:\n        global builtins, json, os, sys\n{body}\n        return {value}"
    return Attack(f"{head}\n{call}\ndef g(n): return f(n), f(n)", TESTS[test])


def forged(server, drawn):
    results = server.verify(*(program(each.text, [{"code": each.test}], seconds=0.3) for each in drawn), timeout=120)
    assert not any(result.forgeable or result.HasField("error") for result in results)
    return [each for each, result in zip(drawn, results, strict=True) if result.reward]


def test_an_honest_program_passes_every_form_of_assert(server):
    for text, reward in ((HONEST, 1.0), (HONEST.replace("+ n", "- n"), 0.0)):
        results = server.verify(*(program(text, [{"code": test}], strict=True) for test in TESTS.values()))
        assert {name: result.reward for name, result in zip(TESTS, results, strict=True)} == dict.fromkeys(
            TESTS, reward
        )
        assert not any(result.forgeable for result in results)


def test_each_known_attack_earns_nothing(server):
    head = SEEN + ALWAYS_EQUAL.format(base="", disguise="int")
    drawn = [
        Attack(f"{head}\ndef f(n): return {value}\ndef g(n): return f(n), f(n)", TESTS["equal"]) for value in VALUES
    ]
    drawn += [
        Attack(f"{head}\ndef f(n): return 0\n{part.format(message=MESSAGES[3])}", TESTS["equal"])
        for part in TAKE_OVER.values()
    ]
    assert forged(server, drawn) == []


FORGED_OF = "verdicts forged: {} of {}"


@settings(max_examples=4, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)
@given(st.lists(attacks(), min_size=12, max_size=12))
def test_no_neighbour_of_an_attack_earns_anything(server, drawn):
    paid = forged(server, drawn)
    note(FORGED_OF.format(len(paid), len(drawn)))
    assert [attack.text for attack in paid] == []


@pytest.mark.slow
def test_none_of_many_neighbours_earns_anything(server):
    counts = [0, 0]

    @settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
    @given(st.lists(attacks(), min_size=20, max_size=20))
    def attack(drawn):
        counts[0] += len(forged(server, drawn))
        counts[1] += len(drawn)

    attack()
    print(FORGED_OF.format(*counts))
    assert counts[0] == 0
    assert counts[1] >= 1200


OTHER_FORMS = {
    "a comparison of the test's own": "def same(a, b):\n    return a == b\nassert same(f(7), 4)",
    "a loop": "for n in (7, 8):\n    assert f(n) == n",
    "a variable": "x = f(7)\nassert x == 4",
    "a method of the value": "assert f(7).startswith('a')",
    "a comparison by another name": "assert same(f(7), 4)",
    "a comparison in an index": "assert g(7)[same(f(7), 4)]",
    "a name of a star import": "from math import *\nassert f(7) == sqrt(2)",
    "a name that the program may import": "assert f(7) == Counter('abc')",
    "a value that the program may set": "assert sorted(f(7))[0] == EXPECTED",
    "a name of the setup that no statement binds": "assert f(7) == from_setup(2)",
}


@pytest.mark.parametrize("test", OTHER_FORMS.values(), ids=OTHER_FORMS)
def test_an_assert_of_another_form_is_marked_and_refused_when_strict(server, test):
    text = "def f(n):\n    return n\ndef same(a, b):\n    return True\ndef sqrt(n):\n    return 7"
    text += "\nCounter = from_setup = sqrt"
    setup = "globals()['from_setup'] = lambda n: 2 * n"
    loose, strict = server.verify(
        *(program(text, [{"code": test}], setup=setup, strict=strict) for strict in (False, True))
    )
    assert loose.forgeable
    assert loose.HasField("reward")
    assert strict.error.code == status_pb2.INVALID_ARGUMENT
    assert strict.error.field.endswith("parameters.strict")
    assert not strict.HasField("reward")


def test_a_composite_says_that_a_part_is_forgeable(server):
    tests = [{"code": OTHER_FORMS["a variable"]}]
    parts = [{"verifier": "code", "weight": 1, "parameters": {"tests": tests}}]
    (result,) = server.verify(item("composite", "```python\ndef f(n):\n    return 4\n```", parts=parts))
    assert result.reward == 1.0
    assert result.forgeable
