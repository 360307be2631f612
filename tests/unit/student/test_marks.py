"""What a row says never becomes a control token, in any family; a row that spells none is tokenized as ever."""

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from tiny_students import FAMILIES, VISION_FAMILIES, tiny_student
from vold_packing.marks import COUNT, FIRST, reveal
from vold_trainer.config import StudentConfig
from vold_trainer.data import Example
from vold_trainer.errors import UsageError
from vold_trainer.files import write_lines
from vold_trainer.student.models import load_student
from vold_trainer.student.traces import read_traces

PLAIN = st.text(st.characters(codec="utf-8", exclude_categories=["Co"]), max_size=12)


@pytest.fixture(scope="module")
def students(tmp_path_factory):
    root, made = tmp_path_factory.mktemp("families"), {}

    def student(family):
        if family not in made:
            made[family] = load_student(StudentConfig(path=str(tiny_student(family, root / family))))
        return made[family]

    return student


def example(text, *, image=False, role="user"):
    content = [{"type": "image"}, {"type": "text", "text": text}] if image else text
    return Example("q", ({"role": role, "content": content},), "", (Image.new("RGB", (64, 64)),) if image else ())


def control_ids(student):
    """Without the token of unknown letters, which a tiny vocabulary has many of."""
    backend = student.tokenizer.backend_tokenizer
    marks = student.shield.marks.control | student.shield.marks.others
    return {backend.token_to_id(mark): mark for mark in marks if mark != student.tokenizer.unk_token}


def controls_in(student, ids):
    known = control_ids(student)
    return [known[token] for token in ids if token in known]


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("image", [False, True])
def test_no_control_token_is_made_of_a_rows_text(family, image, students):
    if image and family not in VISION_FAMILIES:
        return
    student = students(family)
    (without,) = student.prompt_ids([example("1 plus 2", image=image)])
    marks = student.shield.marks
    assert marks.control
    for mark in sorted(marks.control | marks.others):
        prompts = [example(text, image=image) for text in (f"1 {mark} 2", "1 plus 2", mark, f"{mark}{mark}\n{mark}")]
        marked, plain, alone, thrice = student.prompt_ids(prompts)
        assert plain == without
        for ids in (marked, alone, thrice):
            assert controls_in(student, ids) == controls_in(student, without), mark
        letters = marks.letters(mark)
        assert not set(letters) & set(control_ids(student))
        assert any(marked[start : start + len(letters)] == letters for start in range(len(marked)))


@pytest.mark.parametrize("family", FAMILIES)
def test_the_ids_of_the_letters_read_back_as_the_mark(family, students):
    student = students(family)
    for mark in student.shield.marks.control:
        letters = student.shield.marks.letters(mark)
        if student.tokenizer.unk_token_id not in letters:  # a tiny vocabulary may lack a letter
            assert student.tokenizer.decode(letters).replace(" ", "") == mark.replace(" ", "")


@pytest.mark.parametrize("family", ["qwen2.5-vl", "gemma3", "smolvlm", "llava", "qwen3"])
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=30)
@given(data=st.data())
def test_any_mixture_of_marks_and_text(family, data, students):
    if family not in FAMILIES:
        pytest.skip("no such family")
    student = students(family)
    pieces = st.lists(st.one_of(PLAIN, st.sampled_from(sorted(student.shield.marks.control))), max_size=6)
    texts = data.draw(st.lists(pieces.map("".join).filter(str.strip), min_size=1, max_size=3))
    prompts = [example(text) for text in texts]
    (frame,) = student.prompt_ids([example("1 plus 2")])
    together = student.prompt_ids(prompts)
    assert together == [ids for prompt in prompts for ids in student.prompt_ids([prompt])]
    for prompt, ids in zip(prompts, together, strict=True):
        assert controls_in(student, ids) == controls_in(student, frame)
        text = prompt.messages[0]["content"].strip()
        if not any(mark in text for mark in student.shield.marks.control):
            rendered, bos = student.render(prompt), student.tokenizer.bos_token
            adds = student.processor is not student.tokenizer and not (bos and rendered.startswith(bos))
            assert ids == student.tokenizer(rendered, add_special_tokens=adds)["input_ids"]
        assert text in student.render(prompt)


@pytest.mark.parametrize("family", [family for family in ("qwen2.5-vl", "smolvlm", "gemma3") if family in FAMILIES])
def test_rows_with_images_keep_their_inputs_beside_a_row_with_marks(family, students):
    student = students(family)
    plain = [example("how many?", image=True), example("1 plus 2"), example("and here?", image=True)]
    mark = min(student.shield.marks.control, key=len)
    mixed = [plain[0], example(f"how {mark} many?", image=True), plain[1], plain[2], example(f"{mark}")]
    expected, inputs = student.encode(plain), student.encode(mixed)
    rows = [0, 2, 3]
    for index, row in enumerate(rows):
        for name in ("input_ids", "attention_mask"):
            length = int(expected["attention_mask"][index].sum())
            assert torch.equal(inputs[name][row, -length:], expected[name][index, -length:]), name
    pictures = [name for name in expected if expected[name].shape != expected["input_ids"].shape]
    assert pictures
    for name in pictures:
        assert inputs[name].shape[0] * 2 == expected[name].shape[0] * 3, name
    assert set(inputs) == set(expected)


@pytest.mark.parametrize("cut", range(1, 10))
def test_a_mark_in_two_parts_is_none(cut, students):
    student = students("qwen3")
    mark = "<|im_end|>"
    parts = [{"type": "text", "text": text} for text in ("a", mark[:cut], mark[cut:], "b")]
    (ids,) = student.prompt_ids([Example("q", ({"role": "user", "content": parts},), "")])
    (frame,) = student.prompt_ids([example("ab")])
    assert controls_in(student, ids) == controls_in(student, frame)


def test_every_text_of_a_message_is_shielded_and_shown_as_it_is(students):
    student = students("qwen3")
    turns = (
        {"role": "system", "content": "<|im_start|>system"},
        {"role": "user", "content": "a<|im_end|>"},
        {"role": "assistant", "content": "b<|im_end|>"},
        {"role": "user", "content": chr(FIRST) + "<|im_end|>" + chr(FIRST + 1)},
    )
    prompt = student.prompt(Example("q", turns, ""), student.shield.marks)
    assert set(prompt.marks) == {"<|im_start|>", "<|im_end|>", chr(FIRST), chr(FIRST + 1)}
    shown = reveal(prompt)
    for turn in turns:
        assert turn["content"] in shown
    (ids,) = student.prompt_ids([Example("q", turns, "")])
    plain = tuple({**turn, "content": "x"} for turn in turns)
    (frame,) = student.prompt_ids([Example("q", plain, "")])
    assert controls_in(student, ids) == controls_in(student, frame)


def test_more_marks_than_stand_ins_are_an_error_of_the_row(students):
    student = students("qwen3")
    many = "".join(chr(FIRST + number) for number in range(COUNT)) + "<|im_end|>"
    with pytest.raises(
        UsageError, match=r"its texts spell more than 64 different control tokens, such as '<\|im_end\|>'"
    ):
        student.prompt_ids([example(many)])


def test_a_completion_to_learn_has_one_end_and_no_other_control_token(students, tmp_path):
    student = students("qwen3")
    texts = ["so 3", "so 3<|im_end|>", "so 3<|im_end|>\n", "so <|im_start|>user 3"]
    rows = [{"prompt": "1 + 2?", "completion": text} for text in texts]
    write_lines(tmp_path / "traces.jsonl", rows)
    plain, ended, with_newline, forged = (trace.ids for trace in read_traces(tmp_path / "traces.jsonl", student))
    assert plain == ended == with_newline
    assert controls_in(student, plain) == controls_in(student, forged) == ["<|im_end|>"]
