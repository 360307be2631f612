"""answers.jsonl: what a kill leaves of it, and what must not be mixed."""

import json

import pytest
from vold_trainer.data import Example
from vold_trainer.errors import UsageError
from vold_trainer.evaluation.answers import GREEDY, Answer, Answers, keys, prompt_digest

DRAWN = {"student weights": "abc", "max_tokens": 96}


def answer(number, sample=GREEDY, prompt="p", completion="né\n"):
    return Answer("text", f"q{number}", sample, completion, 3, False, prompt)


def example(text, name="a", role="user"):
    return Example(name, ({"role": role, "content": text},), "1")


def test_what_was_added_is_there_after_opening_again(tmp_path):
    path = tmp_path / "out" / "answers.jsonl"
    first = Answers(path, DRAWN)
    first.add([answer(1), answer(1, 0)])
    first.add([answer(2)])
    first.close()
    again = Answers(path, DRAWN)
    assert len(again) == 3
    assert again.get("text", "q1", 0, "p") == answer(1, 0)
    assert again.get("text", "q3", 0, "p") is None
    assert again.get("image", "q1", 0, "p") is None
    again.add([answer(2, completion="later")])
    again.close()
    assert Answers(path, DRAWN).get("text", "q2", GREEDY, "p").completion == "later"


def test_wherever_a_kill_cuts_the_file_whole_lines_stay_and_writing_goes_on(tmp_path):
    path = tmp_path / "answers.jsonl"
    store = Answers(path, DRAWN)
    for number in range(3):
        store.add([answer(number)])
    store.close()
    whole = path.read_bytes()
    for cut in range(len(whole) + 1):
        path.write_bytes(whole[:cut])
        store = Answers(path, DRAWN)
        assert len(store) == max(0, whole[:cut].count(b"\n") - 1)
        store.add([answer(9)])
        store.close()
        again = Answers(path, DRAWN)
        assert again.get("text", "q9", GREEDY, "p") == answer(9)
        assert len(again) == len(store)
        again.close()


@pytest.mark.parametrize(
    ("drawn", "message"),
    [
        (
            {**DRAWN, "student weights": "xyz"},
            "holds answers with student weights 'abc', and this evaluation has 'xyz'",
        ),
        ({**DRAWN, "temperature": 1.0}, "temperature None, and this evaluation has 1.0"),
        ({"student weights": "abc"}, "max_tokens 96, and this evaluation has None"),
    ],
)
def test_answers_of_another_student_or_drawn_otherwise_are_refused(tmp_path, drawn, message):
    path = tmp_path / "answers.jsonl"
    store = Answers(path, DRAWN)
    store.add([answer(1)])
    store.close()
    with pytest.raises(UsageError, match=message) as raised:
        Answers(path, drawn)
    assert "--fresh" in str(raised.value)
    assert len(Answers(path, DRAWN)) == 1
    assert len(Answers(path, drawn, fresh=True)) == 0


def test_an_answer_to_another_prompt_is_refused(tmp_path):
    store = Answers(tmp_path / "answers.jsonl", DRAWN)
    store.add([answer(1)])
    with pytest.raises(UsageError, match="the answer to 'q1' of set 'text' is to another prompt"):
        store.get("text", "q1", GREEDY, "other")


@pytest.mark.parametrize("line", ["[1]\n", '{"set": "text"}\n', "rubbish\n", '{"drawn": {}}\n'])
def test_a_file_that_is_something_else_is_refused(tmp_path, line):
    path = tmp_path / "answers.jsonl"
    path.write_text(json.dumps({"drawn": DRAWN}) + "\n" + line)
    with pytest.raises(UsageError, match=r"answers\.jsonl:2 is no line of an evaluation"):
        Answers(path, DRAWN)


def test_examples_with_one_id_have_keys_of_their_own():
    found = keys([example("x", name) for name in ("a", "b", "a", "a#2", "a")])
    assert len(set(found)) == 5
    assert found[:3] == ["a", "b", "a#2"]


def test_a_prompts_digest_is_of_its_words():
    assert prompt_digest(example("2+2?")) == prompt_digest(example("2+2?", name="other"))
    assert prompt_digest(example("2+2?")) != prompt_digest(example("2+3?"))
    assert prompt_digest(example("2+2?")) != prompt_digest(example("2+2?", role="system"))
