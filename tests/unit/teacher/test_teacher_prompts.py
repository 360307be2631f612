"""What a teacher is sent in place of the student's prompt: ids that mean to it what the student's mean."""

import json
from dataclasses import replace

import pytest
from tokenizers import Tokenizer
from vold_client import Identity, TeacherInfo, TokenizerFile
from vold_trainer.config import TeacherConfig
from vold_trainer.data import Example
from vold_trainer.errors import HandshakeError, UsageError
from vold_trainer.pocket_building.tokenizer import build_tokenizer
from vold_trainer.scoring.handshake import compare_vocabularies, teacher_vocabulary, vocabulary
from vold_trainer.scoring.teachers import Teacher
from vold_trainer.scoring.twins import TeacherPrompts, flatten_content, teacher_messages
from vold_trainer.student.models import Student

IMAGE = ({"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "How many?"}]},)
TWIN = ({"role": "user", "content": "Three dots. How many?"},)


def prompts(student, teacher, *, rows, eos, chat_template="", **config):
    """TeacherPrompts of a student and a teacher with these tokenizers; nothing of their models is needed."""
    file = teacher.to_str().encode()
    identity = Identity("teacher", "", "weights", "tokenizer")
    met = Teacher("", TeacherConfig(**config), client=None)
    met.info = TeacherInfo(
        identity, rows, teacher.get_vocab_size(), {"eos": eos}, [eos], 4096, 20, 20, "float32", "torch", "1",
        frozenset(),
    )  # fmt: skip
    met.tokenizer = TokenizerFile(identity, file, chat_template)
    met.handshake = compare_vocabularies(
        vocabulary(student), teacher_vocabulary(file), min_shared=0.9, size=max(student.get_vocab().values()) + 1
    )
    return TeacherPrompts(Student(None, student, student, "student", len(student)), met)


@pytest.fixture(scope="module")
def pocket():
    return build_tokenizer()


def of_pocket(pocket, teacher=None, rows=None, **options):
    core = teacher or pocket.backend_tokenizer
    return prompts(pocket, core, rows=rows or len(pocket), eos=pocket.eos_token_id, **options)


def example(content, **options):
    return Example("row", ({"role": "user", "content": content},), "3", **options)


def test_a_system_prompt_goes_before_the_rows_own_and_twins_are_text():
    own = ({"role": "system", "content": "Box it."}, *TWIN)
    assert teacher_messages(Example("a", IMAGE, "3", twin=TWIN)) == TWIN
    assert teacher_messages(Example("a", own, "3"), "Think.")[0]["content"] == "Think.\n\nBox it."
    parts = ({"role": "system", "content": [{"type": "text", "text": "Box it."}]}, *TWIN)
    told = flatten_content(teacher_messages(Example("a", parts, "3"), "Think."))
    assert told == [{"role": "system", "content": "Think.\n\nBox it."}, *TWIN]
    with pytest.raises(UsageError, match="row 'a' has an image, and a teacher reads text only: give the row a 'twin'"):
        teacher_messages(Example("a", IMAGE, "3"), "Think.")


def test_a_prompt_that_both_read_alike_is_sent_as_the_student_read_it(pocket):
    told = of_pocket(pocket)
    rows = [example("1+1?"), example([{"type": "text", "text": "2+2?"}])]
    told.prepare(rows)
    assert [told(row, (1, 2, 3)) for row in rows] == [(1, 2, 3)] * 2
    with pytest.raises(UsageError, match="row 'row' has an image"):
        told.prepare([Example("row", IMAGE, "3")])


def test_a_twin_is_rendered_by_the_students_template_in_the_students_ids(pocket):
    told = of_pocket(pocket)
    row = Example("row", IMAGE, "3", twin=TWIN)
    told.prepare([row])
    expected = tuple(pocket("<|im_start|>user\nThree dots. How many?<|im_end|>\n<|im_start|>assistant\n")["input_ids"])
    assert told(row, (1, 2, 3)) == told(row, (4,)) == expected, "one prompt for all completions of an example"
    assert told(Example("later", IMAGE, "3", twin=TWIN), (1,)) == expected, "unprepared rows too"


def test_ids_that_the_teacher_reads_differently_are_sent_as_text_in_its_own_ids(pocket, caplog):
    """As Qwen3's students and Qwen2.5: the teacher has no token <think>, but all of its characters."""
    core = json.loads(pocket.backend_tokenizer.to_str())
    think = pocket.convert_tokens_to_ids("<think>")
    core["added_tokens"] = [token for token in core["added_tokens"] if token["content"] != "<think>"]
    core["model"]["vocab"]["<ponder>"] = core["model"]["vocab"].pop("<think>")
    told = of_pocket(pocket, Tokenizer.from_str(json.dumps(core)))
    turns = ({"role": "user", "content": "1+1?"}, {"role": "assistant", "content": "<think>2"})
    rows = [Example("row", (*turns, {"role": "user", "content": "So?"}), "2"), example("1+1?")]
    assert think in pocket("<think>")["input_ids"]
    told.prepare(rows)
    sent = told(rows[0], (1, 2, 3))
    assert think not in sent
    assert "".join(pocket.convert_ids_to_tokens(sent)) == (
        "<|im_start|>user\n1+1?<|im_end|>\n<|im_start|>assistant\n<think>2<|im_end|>\n"
        "<|im_start|>user\nSo?<|im_end|>\n<|im_start|>assistant\n"
    )
    assert told(rows[1], (1, 2, 3)) == (1, 2, 3)
    assert "teacher: 1 of 2 prompts hold ids that it reads differently" in caplog.text


def test_an_id_beyond_the_teachers_output_is_refused_before_the_run(pocket):
    most = pocket.convert_tokens_to_ids("~")
    assert most == len(pocket) - 1
    told = of_pocket(pocket, rows=most)
    told.prepare([example("1+1?")])
    with pytest.raises(UsageError, match=rf"row 'row': its prompt holds the id {most} \('~'\).*below {most}: .*'twin'"):
        told.prepare([example("~1?")])


def test_a_teacher_may_read_its_own_template(pocket):
    written = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}{{ eos_token }}<think>"
    row = example([{"type": "text", "text": "1+1?"}])

    def read(**config):
        told = of_pocket(pocket, chat_template=written, system="Think.", **config)
        return pocket.decode(list(told(row, (1,))), skip_special_tokens=False)

    assert read() == "<|im_start|>system\nThink.<|im_end|>\n<|im_start|>user\n1+1?<|im_end|>\n<|im_start|>assistant\n"
    assert read(template="teacher") == "system: Think.\nuser: 1+1?\n<|im_end|><think>"


def test_a_template_of_the_teachers_has_to_be_there_and_to_take_the_messages(pocket):
    with pytest.raises(HandshakeError, match=r"teacher\.template is 'teacher', and the teacher has no chat template"):
        of_pocket(pocket, template="teacher")
    told = of_pocket(pocket, chat_template="{{ raise_exception('no system, please') }}", template="teacher")
    with pytest.raises(UsageError, match=r"row 'row': the chat template of teacher refuses it: no system, please"):
        told.prepare([example("1+1?")])
    told = of_pocket(pocket, chat_template="{{ '' }}", template="teacher")
    with pytest.raises(UsageError, match="row 'row': the prompt for teacher is empty"):
        told.prepare([example("1+1?")])


def test_a_row_that_the_template_refuses_may_be_left_out(pocket):
    refusing = (
        "{% for m in messages %}{{ raise_exception('no sevens') if '7' in m.content else m.content }}{% endfor %}"
    )
    told = of_pocket(pocket, chat_template=refusing, template="teacher")
    rows = [replace(example(f"{n}+1?"), where=f"rows.jsonl:{n}") for n in (6, 7, 8)]
    refused = []
    told.prepare(rows, lambda row, error: refused.append((row, str(error))))
    assert refused == [(rows[1], "rows.jsonl:7: row 'row': the chat template of teacher refuses it: no sevens")]
    assert told(rows[2], ()) == tuple(pocket.encode("8+1?"))
    with pytest.raises(
        UsageError, match=r"rows\.jsonl:7: row 'row': the chat template of teacher refuses it: no sevens"
    ):
        told.prepare(rows)


def test_variables_of_the_teachers_own_template_reach_it_and_unknown_ones_are_refused(pocket):
    template = "{% for m in messages %}{{ m.content }}{% endfor %}{% if not enable_thinking %}!{% endif %}"
    for thinks, expected in ((True, "1+1?"), (False, "1+1?!")):
        variables = {"enable_thinking": thinks}
        told = of_pocket(pocket, template="teacher", chat_template=template, chat_template_kwargs=variables)
        assert pocket.decode(told(example("1+1?"), ())) == expected
    for name in ("enable_thinkin", "tokenize"):
        with pytest.raises(HandshakeError, match=f"teacher.chat_template_kwargs: .* no variable '{name}'"):
            of_pocket(pocket, template="teacher", chat_template=template, chat_template_kwargs={name: True})
