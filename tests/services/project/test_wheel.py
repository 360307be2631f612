"""The wheel in environments that hold no more than an extra brings: it is whole, and it says what is missing."""

import ast
import functools
import json
import subprocess
import sys
import zipfile
from contextlib import contextmanager
from importlib import metadata
from importlib.util import find_spec

import pytest
from packaging.utils import canonicalize_name
from wheel_environments import ROOT, Environment, build, closure, environment

PACKAGES = {
    "vold_proto": ("proto", ()),
    "vold_packing": ("packing", ("torch",)),
    "vold_client": ("client", ()),
    "vold_service": ("services/common", ("service",)),
    "vold_teacher": ("services/teacher", ("teacher",)),
    "vold_verifier": ("services/verifier", ("verifier",)),
    "vold_trainer": ("trainer", ("trainer",)),
}
"""Where a package is, and the extra that brings what it imports."""
PROGRAMS = {"vold": "trainer", "vold-teacher": "teacher", "vold-verifier": "verifier"}
ASKED_FIRST = {
    "vold_client/tracing.py": "otel",
    "vold_service/tracing.py": "otel",
    "vold_trainer/rollout/weights.py": "vllm",
    "vold_verifier/verifiers/reasoning_gym.py": "reasoning-gym",
}
"""Modules that do without an extra, or are not called without it, and import from it without `require_extra`."""
BROUGHT_BY_THE_USER = {"deepspeed"}
"""What a configuration of accelerate names, and no extra brings."""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    return build(tmp_path_factory.mktemp("wheel"))


@pytest.fixture(scope="module")
def bare(wheel, tmp_path_factory):
    """The wheel, and what it depends on without any extra."""
    made = Environment(tmp_path_factory.mktemp("environment") / "bare")
    made.install(wheel)
    made.add()
    return made


@pytest.fixture
def make(bare, tmp_path):
    """An environment with these extras too."""

    def make(*extras):
        made = Environment(tmp_path / "-".join(("with", *extras)))
        made.share(bare)
        made.add(*extras)
        return made

    return make


@contextmanager
def serving(holder, module, *arguments):
    """A service of an environment. Yields the URLs of its two faces."""
    ports = ["--http", "127.0.0.1:0", "--grpc", "127.0.0.1:0"]
    command = [holder.bin / "python", "-m", module, "serve", *ports, *arguments]
    with subprocess.Popen(command, stdout=subprocess.PIPE, env=environment()) as process:
        try:
            ready = json.loads(process.stdout.readline())
            yield f"grpc://{ready['grpc']}", ready["http"]
        finally:
            process.kill()


def test_the_wheel_holds_the_packages_and_nothing_else(wheel):
    there = {
        str(path.relative_to(ROOT / folder))
        for package, (folder, _) in PACKAGES.items()
        for path in (ROOT / folder / package).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    with zipfile.ZipFile(wheel) as archive:
        held = {name for name in archive.namelist() if not name.split("/")[0].endswith(".dist-info")}
    assert held == there


@pytest.mark.skipif(find_spec("torch") is None, reason="not all extras are installed here, to ask for their modules")
@pytest.mark.slow
def test_an_extra_brings_what_its_code_imports(bare):
    """Also what is imported late; inside `with require_extra(EXTRA, ...)` that extra's packages may be imported too."""
    providers = metadata.packages_distributions()
    brought = functools.cache(lambda *extras: closure(bare.vold, extras))
    for package, (folder, extras) in PACKAGES.items():
        for path in sorted((ROOT / folder / package).rglob("*.py")):
            other = ASKED_FIRST.get(str(path.relative_to(ROOT / folder)))
            for module, line, needed in imports(tree(path)):
                if module in PACKAGES.keys() | BROUGHT_BY_THE_USER | sys.stdlib_module_names:
                    continue
                asked = (*extras, *filter(None, (needed, other)))
                found = {canonicalize_name(name) for name in providers.get(module, [module])}
                assert found & brought(*asked), f"{path}:{line} imports {module}, which {asked} do not bring"


@functools.cache
def tree(path):
    return ast.parse(path.read_text())


def imports(node, needed=None):
    """The first name of every absolute import below a node, its line, and the extra of the `with require_extra` around
    it.
    """
    if isinstance(node, ast.Import):
        yield from ((alias.name.split(".")[0], node.lineno, needed) for alias in node.names)
    elif isinstance(node, ast.ImportFrom):
        assert not node.level, f"line {node.lineno}: a relative import"
        yield node.module.split(".")[0], node.lineno, needed
    elif isinstance(node, ast.With):
        needed = next((extra for item in node.items for extra in extras_named(item.context_expr)), needed)
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.stmt | ast.ExceptHandler | ast.match_case):  # no import stands in an expression
            yield from imports(child, needed)


def extras_named(node):
    """The extras in an expression's calls of `require_extra`, `exit_without_extra` and `missing_extra_message`."""
    for call in ast.walk(node):
        function = getattr(getattr(call, "func", None), "id", "")
        position = {"require_extra": 0, "exit_without_extra": 1, "missing_extra_message": 2}.get(function)
        if position is not None and isinstance(call.args[position], ast.Constant):
            yield call.args[position].value


def test_every_extra_that_code_names_exists(bare):
    named = {
        extra
        for package, (folder, _) in PACKAGES.items()
        for path in (ROOT / folder / package).rglob("*.py")
        if "vold_proto.distribution" in path.read_text()
        for extra in extras_named(tree(path))
    }
    assert {*PROGRAMS.values(), "data", "otel", "vllm"} <= named
    assert named <= set(bare.vold.metadata.get_all("Provides-Extra"))


def test_the_client_needs_its_own_dependencies_alone(bare, make, tmp_path):
    """A verifier that holds no more than its extra brings answers a client that holds no more than the wheel does."""
    script = tmp_path / "client.py"
    script.write_text(CLIENT)
    with serving(make("verifier"), "vold_verifier", "--workers", "1") as urls:
        done = bare.run("python", script, *urls)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == [bare.vold.version, *[[1.0, 0.0]] * len(urls)]


CLIENT = """
import json, sys
from importlib.util import find_spec

from vold_client import Item, VerifierClient
from vold_proto.distribution import VERSION

for name in ("fastapi", "pydantic", "torch", "transformers", "typer", "yaml"):
    assert find_spec(name) is None, name
said = [VERSION]
for url in sys.argv[1:]:
    with VerifierClient(url) as verifier:
        items = [Item("math", r"\\boxed{2/4}", "0.5"), Item("math", r"\\boxed{2}", "0.5")]
        said.append([verdict.reward for verdict in verifier.verify(items)])
print(json.dumps(said))
"""


@pytest.mark.parametrize(("program", "extra"), PROGRAMS.items())
def test_a_program_names_the_extra_that_is_missing(bare, program, extra):
    for command in ([program, "--help"], ["python", "-m", f"vold_{extra}"]):
        done = bare.run(*command)
        assert (done.returncode, done.stdout) == (1, "")
        assert done.stderr == (
            f"error: {program} needs typer, which is not installed: "
            f"install vold with the extra {extra!r} (docs/install.md)\n"
        )
    assert bare.run(program, "--version").stdout == f"{program} {bare.vold.version}\n"


@pytest.mark.parametrize(
    ("source", "says"),
    [
        ("import of_no_extra", "No module named 'of_no_extra'"),
        ("raise ImportError('libof.so.1: cannot open shared object file')", "libof.so.1"),
    ],
)
def test_a_broken_package_is_not_called_missing(make, source, says):
    held = make()
    (held.packages / "typer.py").write_text(source)
    done = held.run("python", "-m", "vold_trainer", "--help")
    assert done.returncode == 1
    assert says in done.stderr
    assert "install vold" not in done.stderr


@pytest.mark.slow
def test_a_teacher_scores_with_its_extra_alone(bare, make, tmp_path):
    script = tmp_path / "client.py"
    script.write_text(
        "import json, sys\n"
        "from vold_client import Completion, TeacherClient\n"
        "for url in sys.argv[1:]:\n"
        "    with TeacherClient(url) as teacher:\n"
        "        print(teacher.score([[1, 2, 3]], [Completion(0, [4, 5])]).scores[0].logprobs.shape)\n"
    )
    model = bare.packages / "vold_trainer/pocket/checkpoints/teacher"
    with serving(make("teacher"), "vold_teacher", "--model", model) as urls:
        done = bare.run("python", script, *urls)
    assert (done.returncode, done.stdout) == (0, "(2,)\n" * 2), done.stderr


@pytest.mark.slow
def test_a_run_is_checked_with_the_trainers_extra_alone(bare, make):
    """Data, student, services and one small step; `local:` services are not there to start."""
    model = bare.packages / "vold_trainer/pocket/checkpoints/teacher"
    trainer = make("trainer")
    with (
        serving(make("teacher"), "vold_teacher", "--model", model) as (teacher, _),
        serving(make("verifier"), "vold_verifier", "--workers", "1") as (verifier, _),
    ):
        urls = [f"teacher.url={teacher}", f"verifier.url={verifier}"]
        done = trainer.run("python", "-m", "vold_trainer", "check", "pocket:vold", "student.path=pocket:student", *urls)
        assert done.returncode == 0, done.stdout + done.stderr
    done = trainer.run("python", "-m", "vold_trainer", "check", "pocket:vold", "student.path=pocket:student")
    assert done.returncode == 1
    assert "install vold with the extra 'teacher'" in done.stdout + done.stderr
    assert "Traceback" not in done.stdout + done.stderr


@pytest.mark.slow
@pytest.mark.parametrize(
    ("extra", "code"),
    [
        ("data", "from vold_trainer.data.parquet import _pyarrow as brings"),
        ("peft", "from peft import LoraConfig as brings"),
        ("smolvlm", "from num2words import num2words as brings"),
        ("reasoning-gym", "from vold_verifier.registry import load as brings; assert 'reasoning-gym' in brings()"),
        ("otel", "from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter as brings"),
    ],
)
def test_an_extra_brings_what_is_optional(make, extra, code):
    held = make(*([] if extra == "reasoning-gym" else ["trainer"]), extra)
    done = held.run("python", "-c", code)
    assert done.returncode == 0, done.stderr
