"""No sequence is learned beyond the positions of the student, and rows that do not fit are known before a run."""

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from tiny_students import tiny_student
from vold_trainer.config import StudentConfig
from vold_trainer.data import Example
from vold_trainer.data.faults import PromptTooLongError
from vold_trainer.errors import UsageError
from vold_trainer.files import write_lines
from vold_trainer.student.batching import make_batch
from vold_trainer.student.lengths import check_prompts, known_lengths
from vold_trainer.student.models import load_student
from vold_trainer.student.readable import make_readable_batch
from vold_trainer.student.traces import read_traces

POSITIONS = 64


@pytest.fixture(scope="module", params=["qwen3", "qwen2.5-vl"])
def student(request, tmp_path_factory):
    made = load_student(StudentConfig(path=str(tiny_student(request.param, tmp_path_factory.mktemp("student")))))
    made.model.config.get_text_config().max_position_embeddings = POSITIONS
    return made


def example(words, *, image=False, number=1):
    content = "1 " * words
    picture = (Image.new("RGB", (64, 64)),) if image else ()
    parts = [{"type": "image"}, {"type": "text", "text": content}] if image else content
    return Example(f"q{number}", ({"role": "user", "content": parts},), "", picture, where=f"rows.jsonl:{number}")


@settings(max_examples=15)
@given(words=st.lists(st.integers(1, 40), min_size=1, max_size=5), max_tokens=st.integers(1, 40))
def test_every_row_that_leaves_no_room_is_told_before_a_run(student, words, max_tokens):
    examples = [example(count, number=number) for number, count in enumerate(words, 1)]
    long = [each for each in examples if len(student.prompt_ids([each])[0]) + max_tokens > POSITIONS]
    told = []
    check_prompts(student, examples, max_tokens, lambda each, error: told.append(each))
    assert told == long
    if long:
        with pytest.raises(PromptTooLongError) as raised:
            check_prompts(student, examples, max_tokens, None)
        said = str(raised.value)
        assert said.startswith(f"{long[0].where}: row {long[0].id!r}: its prompt has ")
        assert f"rollout.max_tokens {max_tokens} that is more than the 64 positions of the student" in said
        assert (f"So are {len(long) - 1} more of {len(examples)} rows" in said) == (len(long) > 1)
        assert said.endswith("Lower rollout.max_tokens, drop them, or set data.skip_broken=true")
    else:
        check_prompts(student, examples, max_tokens, None)


@pytest.mark.parametrize("positions", [POSITIONS, 0])
def test_a_template_that_drops_a_text_is_told_before_the_first_step(student, monkeypatch, positions):
    monkeypatch.setattr(student.model.config.get_text_config(), "max_position_embeddings", positions)
    drops = "{% for m in messages if m.role != 'system' %}{{ m.content | string }}{% endfor %}"
    monkeypatch.setattr(student.processor, "chat_template", drops)
    rows = [example(3, number=1), *(example(2, number=number) for number in (2, 3))]
    system = {"role": "system", "content": "Always box."}
    rows[1:] = [replace(row, messages=(system, *row.messages)) for row in rows[1:]]
    said = (
        r"^rows\.jsonl:2: row 'q2': the student's chat template drops 'Always box\.' of the turn of 'system': .*\. So "
        r"are 1 more of 3 rows\. Mend the row, or set data\.skip_broken=true$"
    )
    with pytest.raises(UsageError, match=said):
        check_prompts(student, rows, 4, None)
    told = []
    check_prompts(student, rows, 4, lambda each, error: told.append(each))
    assert not told  # a step says so


def test_a_model_that_states_no_limit_takes_every_row(student, monkeypatch):
    monkeypatch.setattr(student.model.config.get_text_config(), "max_position_embeddings", 0)
    check_prompts(student, [example(200)], 1000, None)
    make_batch(student, [example(200)], [[5] * 100])


@pytest.mark.parametrize("image", [False, True])
@pytest.mark.parametrize("share", [False, True])
def test_a_batch_holds_no_sequence_that_is_too_long(student, image, share):
    if image and student.processor is student.tokenizer:
        return
    one, two = example(3, image=image, number=1), example(1, number=2)
    length = len(student.prompt_ids([one])[0])
    assert (known_lengths(student, [one, two])[0] < length) == image  # without what the processor makes of the image
    completions = [[5] * (POSITIONS - length), [5], [5]]
    examples = [one, one, two]
    make_batch(student, examples, completions, share=share)
    completions[0] = [*completions[0], 5]
    message = rf"its prompt has {length} tokens, and with the {POSITIONS - length + 1} of a completion"
    with pytest.raises(PromptTooLongError, match=message):
        make_batch(student, examples, completions, share=share)
    faults = {}
    readable, batch = make_readable_batch(
        student, examples, completions, lambda index, fault: faults.update({index: fault}), share=share
    )
    assert (readable, sorted(faults)) == ([2], [0, 1])
    assert {fault.kind for fault in faults.values()} == {"too long"}
    assert batch is not None
    assert len(batch.ids_N) == 1


def test_a_trace_that_is_too_long_is_an_error_of_its_row(student, tmp_path):
    rows = [{"prompt": "1 + 1?", "completion": "1 " * count} for count in (3, 60, 5)]
    file = tmp_path / "traces.jsonl"
    write_lines(file, rows)
    message = (
        rf"^{file}:2: its prompt has \d+ tokens, and with the 12\d of its completion that is more than the 64 positions"
    )
    with pytest.raises(UsageError, match=message) as raised:
        read_traces(file, student)
    assert str(raised.value).endswith("Mend the row, or set data.skip_broken=true")
    traces = read_traces(file, student, skip_broken=True)
    assert [trace.example.where for trace in traces] == [f"{file}:1", f"{file}:3"]


def test_a_template_that_refuses_a_row_of_traces_is_an_error_of_the_row(student, tmp_path, monkeypatch):
    template = "{% if '17' in messages[0].content | string %}{{ 1 // 0 }}{% endif %}{{ messages[0].content }}"
    monkeypatch.setattr(student.processor, "chat_template", template)
    file = tmp_path / "traces.jsonl"
    write_lines(file, [{"prompt": text, "completion": "1"} for text in ("1", "17", "2")])
    with pytest.raises(UsageError, match=rf"^{file}:2: .*zero.*Mend the row, or set data\.skip_broken=true$"):
        read_traces(file, student)
    assert len(read_traces(file, student, skip_broken=True)) == 2
