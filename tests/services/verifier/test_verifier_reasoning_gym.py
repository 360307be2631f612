"""reasoning-gym's tasks through a real server: their own answers are right, and no answer runs as a program."""

import json
from functools import cache

import pytest
from verifier_server import running
from vold_client import Item
from vold_client.sync import VerifierClient
from vold_verifier.verifiers.reasoning_gym import EVALUATING_TASKS, evaluation_violation

reasoning_gym = pytest.importorskip("reasoning_gym")

from reasoning_gym.factory import DATASETS  # noqa: E402


@pytest.fixture(scope="module")
def client():
    with (
        running("--workers", "2", "--time-limit", "10") as server,
        VerifierClient(f"grpc://{server.ready['grpc']}") as client,
    ):
        yield client


def plain(value):
    return json.loads(json.dumps(value, default=str))


TASKS = sorted(set(DATASETS) - {"composite"})  # a mixture of others
SEVERAL = pytest.mark.parametrize(
    "tasks",
    [pytest.param(TASKS[::6], id="every sixth"), pytest.param(TASKS, id="every", marks=pytest.mark.slow)],
)


@cache
def made(task):
    """(an entry of the task, its dataset)."""
    dataset = reasoning_gym.create_dataset(task, size=1, seed=7)
    return dataset[0], dataset


@SEVERAL
def test_the_reward_of_a_tasks_own_answer_is_its_scorers(client, tasks):
    expected, items = {}, []
    for name in tasks:
        entry, dataset = made(name)
        answer = str(entry["answer"])
        expected[name] = dataset.score_answer(answer, entry)
        if "<answer>" in answer or len(answer) > 20_000 or not answer.strip():
            continue
        items.append(
            Item("reasoning-gym", f"<think>?</think><answer>{answer}</answer>", answer,
                 parameters={"task": name, "entry": json.dumps(plain(entry))}, id=name)
        )  # fmt: skip
    assert len(items) > 0.9 * len(tasks)
    verdicts = {verdict.id: verdict for verdict in client.verify(items)}
    different = {
        name: (expected[name], verdict.reward, str(verdict.error or verdict.reason)[:200])
        for name, verdict in verdicts.items()
        if verdict.reward is None or abs(verdict.reward - expected[name]) > 1e-9
    }
    assert different == {}


@SEVERAL
def test_wrong_answers_are_wrong(client, tasks):
    entries = {name: made(name) for name in tasks}
    items = [
        Item("reasoning-gym", "<answer>1234567</answer>", str(entry["answer"]),
             parameters={"task": name, "entry": json.dumps(plain(entry))}, id=name)
        for name, (entry, _) in entries.items()
    ]  # fmt: skip
    verdicts = {verdict.id: verdict for verdict in client.verify(items)}
    correct = set()
    for name, (entry, dataset) in entries.items():
        assert verdicts[name].error is None, verdicts[name]
        if verdicts[name].correct:
            assert dataset.score_answer("1234567", entry) == 1.0
            correct.add(name)
    assert len(correct) <= 2, correct  # tasks of two answers, whose scorers take any other text for one of them


def test_an_entry_may_be_an_object(client):
    for name in ("countdown", "leg_counting", "n_queens"):
        entry = plain(made(name)[0])
        del entry["answer"]
        answer = str(made(name)[0]["answer"])
        (verdict,) = client.verify(
            [Item("reasoning-gym", f"<answer>{answer}</answer>", answer, parameters={"entry": entry})]
        )
        assert verdict.correct, verdict


def test_an_item_that_cannot_be_verified_has_an_error(client):
    items = [
        Item("reasoning-gym", "<answer>1</answer>", "1"),
        Item("reasoning-gym", "<answer>1</answer>", "1", parameters={"task": "no_such_task"}),
        Item("reasoning-gym", "<answer>1</answer>", "1", parameters={"task": "countdown", "config": {"no": 1}}),
        Item("reasoning-gym", "<answer>1</answer>", "1", parameters={"task": "arc_1d", "entry": {"metadata": 3}}),
        Item("reasoning-gym", "<answer>1</answer>", "1", parameters={"entry": "{"}),
        Item("reasoning-gym", "<answer>x</answer>", "1", parameters={"task": "n_queens"}),
    ]
    for verdict in client.verify(items):
        assert verdict.reward is None, verdict
        assert verdict.error is not None
        assert verdict.error.code == "INVALID_ARGUMENT", verdict


PAYLOADS = [
    "__import__('os').system('touch {canary}')",
    "[__import__('pathlib').Path('{canary}').touch()]",
    "open('{canary}', 'w')",
    "(lambda: open('{canary}', 'w'))()",
    "[c for c in ().__class__.__base__.__subclasses__()]",
    'exec(\'open("{canary}", "w")\')',
    "S('op' + 'en(\"{canary}\", \"w\")')",
    "sympify('op' 'en(\"{canary}\", \"w\")')!",
    "eval(input())",
    "print(1) or open('{canary}', mode='w')",
]


@pytest.mark.parametrize("task", sorted(EVALUATING_TASKS))
def test_no_answer_is_run(client, task, tmp_path):
    tmp_path.chmod(0o777)
    canary = tmp_path / "canary"
    entry = plain(made(task)[0])
    items = [
        Item("reasoning-gym", f"<answer>{payload.replace('{canary}', str(canary))}</answer>", str(entry["answer"]),
             parameters={"task": task, "entry": json.dumps(entry)})
        for payload in PAYLOADS
    ]  # fmt: skip
    verdicts = client.verify(items)
    assert not canary.exists()
    assert [verdict.correct for verdict in verdicts] == [False] * len(items)
    assert [verdict.reward for verdict in verdicts] == [0.0] * len(items)


def test_math_runs_nothing_either(client, tmp_path):
    canary = tmp_path / "canary"
    texts = [payload.replace("{canary}", str(canary)) for payload in PAYLOADS]
    items = [Item("math", rf"\boxed{{{text}}}", "1") for text in texts] + [
        Item("math", r"\boxed{1}", text) for text in texts
    ]
    verdicts = client.verify(items)
    assert not canary.exists()
    assert not any(verdict.correct for verdict in verdicts)


@pytest.mark.parametrize(
    "answer",
    [
        "1 + 2 * (3 - 4) / 5",
        "x**2 + 3*x*exp(x) + log(x) + C",
        "[[0, 1], [1, 0]]",
        "['a', 'b']",
        "Q _ _ _\n_ _ Q _",
        "5!",
    ],
)
def test_answers_are_no_programs(answer):
    assert evaluation_violation(answer) is None


@pytest.mark.parametrize(
    "answer", ["9**9**9", "2^2^2^2^2!", "10**100000", "[0] * 10**9", "1 << 10**9", "(" * 41 + ")" * 41, "9" * 5000]
)
def test_costly_answers_are_rejected_before_evaluation(answer):
    assert evaluation_violation(answer) is not None
