"""answers.jsonl: continuing after a kill, and which answers are refused."""

import json

import pytest
from vold_trainer.data import Example
from vold_trainer.errors import UsageError
from vold_trainer.evaluation.answers import GREEDY, Answer, AnswerStore, prompt_digest

SETTINGS = {"student weights": "abc", "max_tokens": 96}


def answer(number, sample=GREEDY, prompt="p", completion="né\n"):
    return Answer("text", f"q{number}", sample, completion, 3, False, prompt)


def example(text, name="a", role="user"):
    return Example(name, ({"role": role, "content": text},), "1")


def test_added_answers_are_there_after_reopening(tmp_path):
    path = tmp_path / "out" / "answers.jsonl"
    first = AnswerStore(path, SETTINGS)
    first.add([answer(1), answer(1, 0)])
    first.add([answer(2)])
    first.close()
    reopened = AnswerStore(path, SETTINGS)
    assert len(reopened) == 3
    assert reopened.get("text", "q1", 0, "p") == answer(1, 0)
    assert reopened.get("text", "q3", 0, "p") is None
    assert reopened.get("image", "q1", 0, "p") is None
    reopened.add([answer(2, completion="later")])
    reopened.close()
    assert AnswerStore(path, SETTINGS).get("text", "q2", GREEDY, "p").completion == "later"


def test_a_file_truncated_anywhere_keeps_its_complete_lines_and_can_be_appended_to(tmp_path):
    path = tmp_path / "answers.jsonl"
    store = AnswerStore(path, SETTINGS)
    for number in range(3):
        store.add([answer(number)])
    store.close()
    content = path.read_bytes()
    for cut in range(len(content) + 1):
        path.write_bytes(content[:cut])
        store = AnswerStore(path, SETTINGS)
        assert len(store) == max(0, content[:cut].count(b"\n") - 1)
        store.add([answer(9)])
        store.close()
        reopened = AnswerStore(path, SETTINGS)
        assert reopened.get("text", "q9", GREEDY, "p") == answer(9)
        assert len(reopened) == len(store)
        reopened.close()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {**SETTINGS, "student weights": "xyz"},
            "holds answers with student weights 'abc', and this evaluation has 'xyz'",
        ),
        ({**SETTINGS, "temperature": 1.0}, "temperature None, and this evaluation has 1.0"),
        ({"student weights": "abc"}, "max_tokens 96, and this evaluation has None"),
    ],
)
def test_answers_of_another_student_or_other_settings_are_refused(tmp_path, settings, message):
    path = tmp_path / "answers.jsonl"
    store = AnswerStore(path, SETTINGS)
    store.add([answer(1)])
    store.close()
    with pytest.raises(UsageError, match=message) as raised:
        AnswerStore(path, settings)
    assert "--fresh" in str(raised.value)
    assert len(AnswerStore(path, SETTINGS)) == 1
    assert len(AnswerStore(path, settings, fresh=True)) == 0


def test_an_answer_to_another_prompt_is_refused(tmp_path):
    store = AnswerStore(tmp_path / "answers.jsonl", SETTINGS)
    store.add([answer(1)])
    with pytest.raises(UsageError, match="the answer to 'q1' of set 'text' is to another prompt"):
        store.get("text", "q1", GREEDY, "other")


@pytest.mark.parametrize("line", ["[1]\n", '{"set": "text"}\n', "rubbish\n", '{"drawn": {}}\n'])
def test_a_file_that_holds_no_answers_is_refused(tmp_path, line):
    path = tmp_path / "answers.jsonl"
    path.write_text(json.dumps({"drawn": SETTINGS}) + "\n" + line)
    with pytest.raises(UsageError, match=r"answers\.jsonl:2 is no line of an evaluation"):
        AnswerStore(path, SETTINGS)


def test_the_digest_of_a_prompt_depends_on_its_messages_only():
    assert prompt_digest(example("2+2?")) == prompt_digest(example("2+2?", name="other"))
    assert prompt_digest(example("2+2?")) != prompt_digest(example("2+3?"))
    assert prompt_digest(example("2+2?")) != prompt_digest(example("2+2?", role="system"))
