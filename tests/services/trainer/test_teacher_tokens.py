"""The teachers' tokens for the student, over the wire."""

import asyncio
import json
from pathlib import Path

import pytest
from vold_client import AsyncTeacherClient
from vold_trainer.coldstart.teacher_tokens import record_tokens, tokens_file, tokens_of_traces
from vold_trainer.config import SftConfig, StudentConfig, TokenConfig, TrainConfig, load
from vold_trainer.errors import UsageError
from vold_trainer.pocket.shipped import checkpoint_path
from vold_trainer.scoring.teacher_tokens import _joined, tokens_of_teachers
from vold_trainer.services.local import open_services
from vold_trainer.student.added_tokens import write_record


def config(*overrides):
    return load(TrainConfig, Path("pocket:vold"), ["verifier.url=grpc://127.0.0.1:9", *overrides])


def test_they_are_those_of_its_tokenizer_file(pocket_teacher):
    asked = config(f"teacher.url={pocket_teacher.grpc}", "student.add_tokens=teacher")
    with open_services(teachers=asked.used_teachers) as services:
        tokens = tokens_of_teachers(asked, services)
        assert tokens_of_teachers(config(f"teacher.url={pocket_teacher.grpc}"), services) is None
    file = json.loads((checkpoint_path("teacher") / "tokenizer.json").read_text())
    assert [token.model_dump() for token in tokens] == file["added_tokens"]


def test_teachers_with_another_token_at_an_id_are_refused():
    one, other = [TokenConfig(id=7, content="<a>")], [TokenConfig(id=7, content="<b>")]
    more = [*one, TokenConfig(id=9, content="<c>")]
    assert _joined({"teachers.x": one, "teachers.y": more}) == more
    with pytest.raises(UsageError, match=r"id 7 is '<a>' at teachers.x and '<b>' at teachers.y: set it to"):
        _joined({"teachers.x": one, "teachers.y": other})


def test_the_cold_start_has_them_from_beside_the_traces(tmp_path, caplog):
    tokens = [TokenConfig(id=7, content="<a>")]
    asked = SftConfig(
        out=tmp_path, student={"path": "pocket:student", "add_tokens": "teacher"}, traces=tmp_path / "traces.jsonl"
    )
    assert tokens_of_traces(asked) is None
    write_record(tokens_file(asked.traces), tokens, {"model": "some/teacher"})
    assert tokens_of_traces(asked) == tokens
    assert tokens_of_traces(asked.model_copy(update={"student": StudentConfig(path="pocket:student")})) is None

    async def from_nobody():
        async with AsyncTeacherClient("grpc://127.0.0.1:9", timeout=0.1) as client:
            await record_tokens(asked.traces, client)

    asyncio.run(from_nobody())
    assert "the teacher's tokens are not recorded beside the traces" in caplog.text
    assert tokens_of_traces(asked) is None, "those of an earlier teacher are none"
