"""What a config names and what is not there: each is told with the field, the value and the remedy, all at once."""

import http.server
import threading
from typing import ClassVar

import pytest
from huggingface_hub import constants
from vold_trainer.config import EvalConfig, SftConfig, StudentConfig, TracesConfig, TrainConfig, load
from vold_trainer.errors import UsageError
from vold_trainer.sources.check import check_files
from vold_trainer.student.models import load_student

KINDS = {
    "train": (TrainConfig, ["student.path=pocket:student"]),
    "sft": (SftConfig, ["student.path=pocket:student", "traces={0}/rows.jsonl"]),
    "traces": (TracesConfig, []),
    "eval": (EvalConfig, ["student.path=pocket:student"]),
}


def config_of(kind, folder, *overrides):
    made, own = KINDS[kind]
    return load(made, None, [text.format(folder) for text in (f"out={folder}/out/run", *own, *overrides)])


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "rows.jsonl").write_text('{"prompt": "a", "reference": "b"}\n')
    (tmp_path / "run" / "model").mkdir(parents=True)
    (tmp_path / "run" / "model" / "config.json").write_text("{}")
    (tmp_path / "adapter").mkdir()
    (tmp_path / "adapter" / "adapter_config.json").write_text("{}")
    return tmp_path


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_there_passes(kind, folder):
    check_files(config_of(kind, folder))


@pytest.mark.parametrize("named", ["teacher", "{0}/rows.jsonl", "pocket:teacher", "OWNER/NAME", "null"])
def test_what_may_have_tokens_passes(named, folder, monkeypatch):
    (folder / "teacher").mkdir()  # which is not what `teacher` means
    monkeypatch.chdir(folder)
    check_files(config_of("train", folder, f"student.add_tokens={named.format(folder)}"))


FAULTS = [
    ("train", ["student.path={0}/none"], "student.path '{0}/none': there is no model folder '{0}/none': give a folder"),
    ("train", ["student.path=''"], "student.path '': there is no model folder ''"),
    ("train", ["student.path=~/model"], "student.path '~/model': ~ has no meaning in a config: write the whole path"),
    (
        "train",
        ["student.path={0}/rows.jsonl"],
        "student.path '{0}/rows.jsonl' is a file: give the folder that it is in",
    ),
    ("eval", ["student.path={0}/run"], "there is no config.json in it: give its folder '{0}/run/model'"),
    (
        "train",
        ["student.path={0}/adapter"],
        "'{0}/adapter' holds an adapter and no model: merge it into its base model",
    ),
    ("traces", ["teacher.url=local:{0}/adapter"], "local:{0}/adapter' holds an adapter and no model: merge it"),
    ("eval", ["student.path=file://{0}/a%20b"], "a%20b': it is a URL, and a path is wanted: write '{0}/a b'"),
    ("train", ["teacher.url=local:Qwen/Qwen3-8B"], "`hf download Qwen/Qwen3-8B --local-dir Qwen/Qwen3-8B`"),
    ("train", ["teacher.url=local:~/teacher"], "teacher.url 'local:~/teacher': ~ has no meaning in a config"),
    ("train", ["teacher.url=http://a:8000/v1"], "teacher.url: the URL 'http://a:8000/v1' ends in /v1"),
    ("eval", ["verifier.url=https://a/b/v1/"], "verifier.url: the URL 'https://a/b/v1/' ends in /v1"),
    ("train", ["data.source=file://{0}/rows.jsonl"], "it is a URL, and a path is wanted: write '{0}/rows.jsonl'"),
    ("train", ["data.source=~/rows.jsonl"], "data.source '~/rows.jsonl': ~ has no meaning in a config: write"),
    ("sft", ["traces=~/traces.jsonl"], "traces '~/traces.jsonl' does not exist: ~ has no meaning in a config"),
    (
        "sft",
        ["columns.completon=x"],
        "columns.completon: a row has no field 'completon' here; did you mean 'completion'?",
    ),
    ("train", ["student.add_tokens={0}/none"], "student.add_tokens '{0}/none' does not exist: give the folder or the"),
    ("sft", ["student.add_tokens={0}/adapter"], "student.add_tokens '{0}/adapter/tokenizer.json' does not exist"),
    ("train", ["student.add_tokens=~/teacher"], "student.add_tokens '~/teacher' does not exist: ~ has no meaning"),
    ("sft", ["student.path=pocket:pupil"], "there is no pocket checkpoint 'pupil'"),
    ("train", ["teacher.url=local:{0}/none"], "teacher.url 'local:{0}/none': there is no model folder"),
    ("traces", ["teacher.url=[grpc://a:1, 'local:{0}']"], "teacher.url 'local:{0}' is no model folder"),
    ("train", ["teachers.red.url=local:{0}/none"], "teachers.red.url 'local:{0}/none': there is no model folder"),
    ("train", ["teacher.tls.ca={0}/ca.pem"], "teacher.tls.ca is '{0}/ca.pem', which is no file: give a PEM file"),
    ("eval", ["verifier.tls.cert={0}/rows.jsonl"], "verifier.tls.cert is set and tls.key is not"),
    ("sft", ["traces={0}"], "traces '{0}' is a folder: give a file that `vold traces` wrote"),
    (
        "train",
        ["objective.name=gkd", "objective.traces={0}/no.jsonl"],
        "objective.traces '{0}/no.jsonl' does not exist",
    ),
    ("train", ["data.source={0}/no.jsonl"], "data.source '{0}/no.jsonl' is neither 'pocket' nor a file"),
    ("train", ["data.source={0}/rows.jsonl", "data.image_folder={0}/no"], "data.image_folder '{0}/no' does not exist"),
    ("train", ["data.source={0}/rows.jsonl", "data.adapter=mathvisto"], "data.adapter 'mathvisto' is no adapter"),
    ("train", ["data.source={0}/rows.jsonl", "data.columns.promt=x"], "data.columns.promt: a row has no field 'promt'"),
    ("eval", ["data=[{{source: {0}/a.jsonl}}]"], "data.source '{0}/a.jsonl' is neither"),
    ("train", ["out={0}/rows.jsonl"], "out '{0}/rows.jsonl': '{0}/rows.jsonl' is no folder: name another place"),
    ("traces", ["out={0}/rows.jsonl/traces.jsonl"], "'{0}/rows.jsonl' is no folder: name another place"),
]


@pytest.mark.parametrize(("kind", "overrides", "message"), FAULTS, ids=[message[:40] for *_, message in FAULTS])
def test_what_is_not_there_is_told_by_field_value_and_remedy(kind, overrides, message, folder):
    with pytest.raises(UsageError) as raised:
        check_files(config_of(kind, folder, *overrides))
    assert message.format(folder) in str(raised.value)
    assert len(str(raised.value).splitlines()) == 1


def test_all_faults_are_told_at_once(folder):
    config = config_of("train", folder, "student.path=/no", "teacher.url=local:/no", "data.source=/no.jsonl")
    with pytest.raises(UsageError) as raised:
        check_files(config)
    assert [line.split()[0] for line in str(raised.value).splitlines()] == [
        "student.path",
        "data.source",
        "teacher.url",
    ]


def test_a_teacher_that_the_objective_does_not_need_is_not_looked_for(folder):
    check_files(config_of("train", folder, "objective.name=grpo", "teacher.url=local:/no"))


def at(url, monkeypatch):
    monkeypatch.setattr(constants, "ENDPOINT", url)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", url + "/{repo_id}/resolve/{revision}/{filename}")


@pytest.fixture
def hub(monkeypatch, tmp_path):
    """A hub that answers as Hugging Face's does, and an empty cache."""

    class Handler(http.server.BaseHTTPRequestHandler):
        asked: ClassVar[list[str]] = []

        def do_HEAD(self):
            self.asked.append(self.path)
            owner = self.path.removeprefix("/datasets").split("/")[1]
            status, code = {"gated": (403, "GatedRepo"), "data": (404, "EntryNotFound"), "busy": (503, "")}.get(
                owner, (404, "RepoNotFound") if owner != "good" else (200, "")
            )
            self.send_response(status)
            self.send_header("X-Error-Code", code)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *_):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        at(f"http://127.0.0.1:{server.server_port}", monkeypatch)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
        yield Handler
        server.shutdown()


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("nobody/nothing", "there is no folder 'nobody/nothing' here, and the hub shows no model of this name: mend"),
        (
            "gated/model",
            "gives 'gated/model' only to accounts that its owner let in: ask for access at http://127.0.0.1",
        ),
        ("data/set", "'data/set' on the hub is no model of transformers: it has no config.json"),
        ("no body", "it cannot be a name of the hub, which is OWNER/NAME: give a folder that exists"),
    ],
)
def test_what_the_hub_does_not_give_is_told_in_words_that_help(name, message, hub, folder):
    with pytest.raises(UsageError) as raised:
        check_files(config_of("train", folder, f"student.path={name}"))
    assert str(raised.value).startswith(f"student.path {name!r}: ")
    assert message in str(raised.value)
    if name != "data/set":  # which transformers has words for
        with pytest.raises(UsageError) as raised:
            load_student(StudentConfig(path=name))
        assert message in str(raised.value)


def test_a_model_that_the_hub_has_costs_one_request_and_one_in_the_cache_none(hub, folder, tmp_path):
    check_files(config_of("eval", folder, "student.path=good/model"))
    check_files(config_of("eval", folder, "student.path=busy/model"))  # who loads it asks again
    assert hub.asked == ["/good/model/resolve/main/config.json", "/busy/model/resolve/main/config.json"]
    cached = tmp_path / "cache" / "models--kept--model"
    (cached / "snapshots" / "abc").mkdir(parents=True)
    (cached / "refs").mkdir()
    (cached / "refs" / "main").write_text("abc")
    (cached / "snapshots" / "abc" / "config.json").write_text("{}")
    check_files(config_of("eval", folder, "student.path=kept/model"))
    assert len(hub.asked) == 2


def test_a_hub_that_cannot_be_reached_is_told_with_its_address(hub, folder, monkeypatch):
    at("http://127.0.0.1:9", monkeypatch)
    with pytest.raises(UsageError, match=r"and the hub http://127\.0\.0\.1:9 does not give it \(.*refused"):
        check_files(config_of("train", folder, "student.path=nobody/nothing"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(UsageError, match=r"HF_HUB_OFFLINE forbids to ask the hub for it.*run `hf download nobody/not"):
        check_files(config_of("train", folder, "student.path=nobody/nothing"))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("nobody/nothing", "no file and no folder 'nobody/nothing' here, and the hub shows no data set of this name"),
        ("gated/rows", "ask for access at http://127.0.0.1"),
        ("two--dashes", "it cannot be a name of the hub, which is OWNER/NAME: give a folder that exists"),
        ("nope/", "is neither 'pocket' nor a file or folder that exists, nor the name of a data set of the hub"),
    ],
)
def test_a_data_set_that_the_hub_does_not_give_is_told_at_once(name, message, hub, folder):
    with pytest.raises(UsageError) as raised:
        check_files(config_of("train", folder, f"data.source={name}"))
    assert str(raised.value).startswith(f"data.source {name!r}")
    assert message in str(raised.value)


def test_a_data_set_that_the_hub_has_costs_one_request_and_one_in_a_cache_none(hub, folder, tmp_path, monkeypatch):
    for name in ("good/rows", "busy/rows", "data/rows"):  # the last has no such file, but is there
        check_files(config_of("train", folder, f"data.source={name}"))
    assert hub.asked == [
        f"/datasets/{name}/resolve/main/.gitattributes" for name in ("good/rows", "busy/rows", "data/rows")
    ]
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "prepared"))
    (tmp_path / "prepared" / "owner___my_rows").mkdir(parents=True)
    (tmp_path / "cache" / "datasets--Owner--Other").mkdir(parents=True)
    for name in ("Owner/MyRows", "Owner/Other"):
        check_files(config_of("train", folder, f"data.source={name}"))
    assert len(hub.asked) == 3
