"""Variables of the teacher's chat template reach it when it writes traces."""

import shutil
from pathlib import Path

import pytest
from servers import serving
from vold_trainer.coldstart.traces import run_traces
from vold_trainer.config import TracesConfig, load
from vold_trainer.files import read_json_lines
from vold_trainer.pocket.shipped import checkpoint_path
from vold_trainer.pocket_building.tokenizer import CHAT_TEMPLATE

BOXES = "{%- if boxes is defined and boxes -%}{{- '\\\\boxed{' -}}{%- endif -%}"


@pytest.mark.slow
def test_traces_are_written_after_the_prompt_that_the_variables_make(tmp_path):
    folder = tmp_path / "teacher"
    shutil.copytree(checkpoint_path("teacher"), folder)
    (folder / "chat_template.jinja").write_text(CHAT_TEMPLATE + BOXES)
    written = {}
    with serving("teacher", "--model", str(folder)) as server:
        for name, variables in (("plain", "{}"), ("off", "{boxes: false}"), ("boxed", "{boxes: true}")):
            settings = [f"out={tmp_path / name}.jsonl", f"teacher.url={server.grpc}", "verifier=null", "keep=all"]
            settings += ["data.limit=8", "temperature=0", f"teacher.chat_template_kwargs={variables}"]
            run_traces(load(TracesConfig, Path("pocket:traces"), settings))
            written[name] = [row["completion"] for row in read_json_lines(tmp_path / f"{name}.jsonl")]
    assert written["plain"] == written["off"] != written["boxed"]
    assert all("\\boxed{" in completion for completion in written["plain"])
