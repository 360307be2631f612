"""What the docs say exists: links resolve, commands parse, configs load, code compiles."""

import ast
import json
import re
import shlex
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import typer.main
import vold_teacher.cli
import vold_trainer.cli
import vold_verifier.cli
import yaml
from click import Context, UsageError
from google.protobuf.json_format import Parse
from paths import ROOT
from vold_proto.v1 import teacher_pb2, verifier_pb2
from vold_service.keys import Keys
from vold_teacher.openai.fields import parse_request
from vold_teacher.openai.schemas import ChatRequest, CompletionRequest
from vold_teacher.schemas import GenerateIn, LoadIn, ScoreIn, UnloadIn
from vold_trainer.config import EvalConfig, SftConfig, TracesConfig, TrainConfig, load
from vold_trainer.pocket_building.cli import app as pocket_app
from vold_trainer.preparation.cli import app as prepare_app
from vold_verifier import registry
from vold_verifier.http import RequestModel
from vold_verifier.types import BadReferenceError
from vold_verifier.verifiers.base import Item

PAGES = sorted(path.relative_to(ROOT) for path in (*ROOT.glob("*.md"), *(ROOT / "docs").glob("**/*.md")))
KINDS = {"traces": TracesConfig, "sft": SftConfig, "train": TrainConfig, "eval": EvalConfig}
BODIES = {
    "/v1/models/load": LoadIn.model_validate_json,
    "/v1/models/unload": UnloadIn.model_validate_json,
    "/v1/score": ScoreIn.model_validate_json,
    "/v1/generate": GenerateIn.model_validate_json,
    "/v1/completions": lambda text: parse_request(CompletionRequest, text.encode()),
    "/v1/chat/completions": lambda text: parse_request(ChatRequest, text.encode()),
    "/v1/verify": RequestModel.model_validate_json,
    "vold.v1.TeacherService/Score": lambda text: Parse(text, teacher_pb2.ScoreRequest()),
    "vold.v1.TeacherService/Generate": lambda text: Parse(text, teacher_pb2.GenerateRequest()),
    "vold.v1.VerifierService/Verify": lambda text: Parse(text, verifier_pb2.VerifyRequest()),
}
FENCE = re.compile(r"^( *)```(\w*)[^\n]*\n(.*?)^\1```", re.M | re.S)
CALL = re.compile(r"^ *(?:\$ )?(curl|grpcurl) (?:[^'\n]|'[^']*')*", re.M)
OF_AN_INDEX = re.compile(r"""pip install [^\n&|;]*?(?<=['" ])vold(\[[\w,-]*\])?(?! ?@)(?=['"`\s;,.:)]|$)""", re.M)
"""vold is on no index; `vold[EXTRAS] @ URL` is another matter."""
OPTION = re.compile(r"(?<![\w-])--[a-z][\w-]*")
SCRIPT = re.compile(r"\bpython3? ([a-z_]+/[\w/-]+\.py)([^\n`#|]*)")
TEXTS = (".md", ".py", ".yaml")
OF_OTHERS = {
    *("--api-key", "--enable-deterministic-inference", "--logprobs-mode", "--max-logprobs", "--max-model-len"),
    *("--num_processes", "--tensor-parallel-size", "--weight-transfer-config"),
}
"""Options of vLLM, SGLang and accelerate that pages name."""
LINK = re.compile(r"!?\[[^\]]*\]\(([^)\s]+)\)")


def blocks(language):
    """(page and line, text) of every fenced block in that language."""
    found = []
    for page in PAGES:
        text = (ROOT / page).read_text()
        for match in FENCE.finditer(text):
            if match[2] == language:
                line = text.count("\n", 0, match.start()) + 1
                found.append(pytest.param(match[3], id=f"{page}:{line}"))
    return found


def commands():
    """Words of every command of ours in a bash block, continued lines joined."""
    found = []
    for block in blocks("bash"):
        for line in block.values[0].replace("\\\n", " ").splitlines():
            if re.match(r"\s*(\$ )?(\.venv/bin/)?vold(-teacher|-verifier)? ", line):
                words = shlex.split(line.strip().removeprefix("$ ").removeprefix(".venv/bin/"), comments=True)
                end = next((at for at, word in enumerate(words) if word in ("&", "|", ">", "&&", ";")), len(words))
                found.append(pytest.param(words[:end], id=f"{block.id} {line.strip()[:60]}"))
    return found


def calls():
    """(route or method, body) of every curl and grpcurl command that sends one."""
    found = []
    for block in blocks("bash"):
        for match in CALL.finditer(block.values[0].replace("\\\n", " ")):
            words = shlex.split(match[0].strip())
            if "-d" in words:
                body = words[words.index("-d") + 1]
                target = next(
                    re.sub(r"^(https?://)?[\w.]+:\d+", "", word) for word in words if "v1" in word and word != body
                )
                found.append(pytest.param(target, body, id=f"{block.id} {target}"))
    return found


def anchors(path):
    """The anchors of a page's headings, as GitHub makes them."""
    text = FENCE.sub("", path.read_text())
    titles = re.findall(r"^#+ +(.+?) *$", text, re.M)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


@pytest.fixture(scope="module")
def programs():
    groups = {"pocket": pocket_app, "prepare": prepare_app}
    for name in groups.keys() - {group.name for group in vold_trainer.cli.app.registered_groups}:
        vold_trainer.cli.app.add_typer(groups[name], name=name)
    return {
        "vold": typer.main.get_command(vold_trainer.cli.app),
        "vold-teacher": typer.main.get_command(vold_teacher.cli.app),
        "vold-verifier": typer.main.get_command(vold_verifier.cli.app),
    }


@pytest.mark.parametrize("page", PAGES, ids=str)
def test_links_resolve(page):
    text = FENCE.sub("", (ROOT / page).read_text())
    for target in LINK.findall(text):
        if re.match(r"[a-z]+:", target):
            continue
        path, _, anchor = target.partition("#")
        linked = (ROOT / page).parent / path if path else ROOT / page
        assert linked.exists(), f"{page} links to {target}"
        if anchor and linked.suffix == ".md":
            assert anchor in anchors(linked), f"{page} links to {target}; {linked.name} has {sorted(anchors(linked))}"


def test_the_index_knows_every_page():
    linked = LINK.findall((ROOT / "docs/index.md").read_text())
    pages = {str(page.relative_to("docs")) for page in PAGES if page.parts[0] == "docs"} - {"index.md"}
    assert pages <= set(linked)


def test_every_extra_is_described():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    described = re.findall(r"^\| `([\w-]+)` \|", (ROOT / "docs/install.md").read_text(), re.M)
    assert sorted(described) == sorted(project["optional-dependencies"])


@pytest.mark.parametrize(
    ("text", "wrong"),
    [
        ("pip install 'vold[data]'", True),
        ("pip install -U vold", True),
        ('pip install "vold[teacher] @ git+https://example.org/vold@v1"', False),
        ("pip install '.[teacher]' && vold --version", False),
    ],
)
def test_an_install_from_an_index_is_seen(text, wrong):
    assert bool(OF_AN_INDEX.search(text)) == wrong


def test_nothing_says_to_install_vold_from_an_index():
    folders = (
        "benchmarks",
        "client",
        "configs",
        "docker",
        "docs",
        "examples",
        "proto",
        "services",
        "trainer",
        ".github",
    )
    files = [path for folder in folders for path in (ROOT / folder).rglob("*") if path.is_file()]
    for path in [*files, *(path for path in ROOT.glob("*") if path.is_file())]:
        if path.suffix in (".md", ".py", ".toml", ".yaml", ".yml", "") and "__pycache__" not in path.parts:
            found = OF_AN_INDEX.search(path.read_text())
            assert found is None, f"{path} says {found and found[0]!r}: see docs/install.md"


@pytest.mark.parametrize("words", commands())
def test_commands_use_what_exists(words, programs):
    """Options and arguments parse; KEY=VALUE overrides fit the stage's config."""
    command, context = programs[words[0]], Context(programs[words[0]])
    rest = words[1:]
    while hasattr(command, "commands") and rest and not rest[0].startswith("-"):
        assert rest[0] in command.commands, f"{words[0]} has no command {rest[0]!r}"
        command, rest = command.commands[rest[0]], rest[1:]
        context = Context(command, info_name=command.name, parent=context)
    if rest in (["--help"], ["--version"]):
        return
    try:
        command.parse_args(context, list(rest))
    except UsageError as error:
        pytest.fail(f"{shlex.join(words)}: {error.format_message()}")
    if command.name in KINDS and words[0] == "vold":
        given = (context.params["config"], *(context.params["overrides"] or ()))
        stage(command.name, [str(word) for word in given if word is not None])


def stage(name, given):
    """Load what `vold NAME` would; of a file that is the reader's own nothing is known here."""
    first = given[0] if given and "=" not in given[0] else None
    if first is None:
        load(KINDS[name], None, given)
    elif first.startswith("pocket:"):
        load(KINDS[name], Path(first), given[1:])
    elif (ROOT / first).is_file():
        load(KINDS[name], ROOT / first, given[1:])


@pytest.mark.parametrize(("target", "body"), calls())
def test_bodies_fit_their_route(target, body):
    BODIES[target](body)


@pytest.mark.parametrize("text", blocks("yaml"))
def test_yaml_blocks_load(text, tmp_path):
    assert yaml.safe_load(text) is not None
    if marked := re.match(r"# trainer config: (\w+)$", text, re.M):
        file = tmp_path / "config.yaml"
        file.write_text(text)
        load(KINDS[marked[1]], file)
    if text.startswith("# keys file"):
        (tmp_path / "keys.yaml").write_text(text)
        assert not Keys.load(tmp_path / "keys.yaml", {}).open


@pytest.mark.parametrize("text", blocks("python"))
def test_python_blocks_compile(text):
    compile(text, "docs", "exec")


def test_what_a_page_tells_to_write_passes_the_lint(tmp_path):
    """Code for the tree, and packages like the example's: not the scripts that call a service."""
    for number, block in enumerate(blocks("python")):
        if "print(" not in block.values[0]:
            (tmp_path / f"block_{number}.py").write_text(block.values[0])
    assert len(list(tmp_path.iterdir())) >= 3
    config = ["--no-cache", "--config", str(ROOT / "pyproject.toml")]
    for command in (["check", *config], ["format", "--check", *config]):
        ran = subprocess.run([sys.executable, "-m", "ruff", *command, str(tmp_path)], capture_output=True, text=True)
        assert ran.returncode == 0, ran.stdout


def options_of(command):
    """The options of a command and of all commands under it."""
    own = {name for parameter in command.params for name in (*parameter.opts, *parameter.secondary_opts)}
    return own.union({"--help"}, *map(options_of, getattr(command, "commands", {}).values()))


def test_the_options_that_a_text_names_for_a_script_exist():
    """In pages, in comments of configs, and in the scripts themselves."""
    folders = ("benchmarks", "configs", "docs", "examples", "locks", "tests/fuzz")
    texts = [
        path for folder in folders for path in (ROOT / folder).rglob("*") if path.suffix in (".md", ".py", ".yaml")
    ]
    found = 0
    for path in [*texts, *ROOT.glob("*.md"), ROOT / "Makefile"]:
        for script, arguments in SCRIPT.findall(path.read_text().replace("\\\n", " ")):
            named = set(OPTION.findall(arguments.partition(" -- ")[0]))
            assert (ROOT / script).is_file(), f"{path}: {script}"
            unknown = named - options_of_script(script) - {"--help"}
            assert not unknown, f"{path}: {script} has no {', '.join(sorted(unknown))}"
            found += len(named)
    assert found >= 40


def test_the_options_that_a_script_says_of_itself_exist(programs):
    ours = set[str]().union(*map(options_of, programs.values()))
    for folder in ("benchmarks", "examples", "tests/fuzz"):
        for path in (ROOT / folder).rglob("*.py"):
            said = ast.get_docstring(ast.parse(path.read_text())) or ""
            named = set(OPTION.findall(re.sub(r"pip install[^&\n]*", "", said)))
            unknown = named - options_of_script(str(path.relative_to(ROOT))) - ours - OF_OTHERS
            assert not unknown, f"{path} has no {', '.join(sorted(unknown))}"


def options_of_script(script):
    """The options of a script, with those that benchmarks share."""
    read = [ROOT / script, *([ROOT / "benchmarks/common.py"] if script.startswith("benchmarks/") else [])]
    return {name for path in read for name in re.findall(r'add_argument\(\s*"(--[\w-]+)"', path.read_text())}


def test_the_options_of_the_prose_exist(programs):
    """Of the command that is named with them, or without a command of any of ours."""
    scripts = [
        path.relative_to(ROOT) for folder in ("benchmarks", "tests/fuzz") for path in (ROOT / folder).glob("*.py")
    ]
    ours = set[str]().union(*map(options_of, programs.values()), *(options_of_script(str(path)) for path in scripts))
    for page in (*PAGES, Path("benchmarks/README.md")):
        for span in re.findall(r"`([^`]+)`", FENCE.sub("", (ROOT / page).read_text())):
            program, *words = span.split() or [""]
            named = set(OPTION.findall(span))
            if program in programs:
                command = programs[program]
                while words and words[0] in getattr(command, "commands", {}):
                    command = command.commands[words.pop(0)]
                assert named <= options_of(command), f"{page}: `{span}`"
            elif program.startswith("--"):
                assert named <= ours | OF_OTHERS, f"{page}: `{span}` is of no program of ours"


@pytest.mark.parametrize("text", blocks("json"))
def test_json_blocks_are_json(text):
    try:
        json.loads(text)
    except json.JSONDecodeError:
        for line in text.splitlines():
            json.loads(line)


def test_every_test_that_is_named_exists():
    defined = {
        name for path in (ROOT / "tests").glob("**/*.py") for name in re.findall(r"def (test_\w+)", path.read_text())
    }
    for page in PAGES:
        named = set(re.findall(r"`(test_\w+)`", (ROOT / page).read_text()))
        assert named <= defined, f"{page} names {sorted(named - defined)}"


def test_the_keys_of_the_objectives_have_these_defaults():
    config = TrainConfig(out=Path("out"), student={"path": "pocket:student"}).model_dump(mode="json")
    rows = re.findall(r"^\| (`\w+\.\w+`[^|]*) \| ([^|]+) \|", (ROOT / "docs/objectives.md").read_text(), re.M)
    assert len(rows) >= 10
    for keys, defaults in rows:
        for key, default in zip(keys.split(", "), defaults.split(", "), strict=True):
            section, field = key.strip("`").split(".")
            assert config[section][field] == yaml.safe_load(default.strip("`")), key


def test_the_verifier_of_the_guide_judges(tmp_path, monkeypatch):
    text = (ROOT / "docs/guides/write-a-verifier.md").read_text()
    (source,) = re.findall(r"^```python\n(# set_verifier\.py\n.*?)^```", text, re.M | re.S)
    (tmp_path / "set_verifier.py").write_text(source)
    monkeypatch.syspath_prepend(tmp_path)
    verifier = registry.load(["set_verifier"])["set"]
    partial = verifier.parameters.model_validate({"partial": True})
    verdict = verifier.check(Item(r"\boxed{b, c}", "A, b"), partial)
    shown = json.loads(re.search(r'^\{"id": "1".*"missing.*$', text, re.M)[0])
    assert (verdict.reward, verdict.correct, verdict.extracted, verdict.reason) == tuple(
        shown[key] for key in ("reward", "correct", "extracted", "reason")
    )
    assert verifier.check(Item("I say <answer>b, a</answer>", "A, b"), partial).correct
    with pytest.raises(BadReferenceError):
        verifier.check(Item(r"\boxed{b}", " , "), partial)
