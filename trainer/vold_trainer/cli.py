"""The command line: vold demo | prepare | traces | sft | train | export | eval | verify | check | report |
ablation | pocket."""

import logging
import os
import sys
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TypeVar

import typer
from rich.console import Console
from rich.markup import escape
from vold_proto.distribution import VERSION, IncompatibleVersionError

from vold_trainer.errors import ReportedElsewhereError, VoldTrainerError
from vold_trainer.launch import is_local_main_process, is_main_process, processes_connected

if TYPE_CHECKING:
    from vold_trainer.config import EvalConfig, SftConfig, TracesConfig, TrainConfig
    from vold_trainer.lock import Kind

    WritingConfigT = TypeVar("WritingConfigT", EvalConfig, SftConfig, TracesConfig, TrainConfig)

# No child process continues as a fork. Without this setting gRPC writes a line for each child process.
os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "0")

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Train vision-language models to reason, by on-policy distillation from a text-only teacher.",
)

ConfigFile = Annotated[Path | None, typer.Argument(help="YAML file; pocket:NAME for a config that ships with vold")]
Overrides = Annotated[list[str] | None, typer.Argument(help="KEY=VALUE, dotted: optim.lr=1e-4")]
Resume = Annotated[bool, typer.Option("--resume", help="continue from the run's newest checkpoint")]
FromStep = Annotated[str, typer.Option("--step", help="with --resume, from which checkpoint: last, best, or a step")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="delete the run that is in the folder `out`")]


def _split(config: Path | None, overrides: list[str] | None) -> tuple[Path | None, list[str]]:
    """Treat a first argument that contains = as an override, not as a file."""
    keys = list(overrides or [])
    if config is not None and "=" in str(config):
        return None, [str(config), *keys]
    return config, keys


def _load(
    kind: "type[WritingConfigT]", config: Path | None, overrides: list[str] | None, *, writes: "Kind"
) -> "WritingConfigT":
    """The command's config, once every file and folder that it names is there and its `out` is free: a command calls
    this before it imports what needs torch, so that a mistake is told at once.
    """
    from vold_trainer.config import load
    from vold_trainer.lock import check_free
    from vold_trainer.sources.check import check_files

    settings = load(kind, *_split(config, overrides))
    check_files(settings)
    check_free(settings.out, writes)
    return settings


def _print_version(requested: bool) -> None:
    if requested:
        typer.echo(f"vold {VERSION}")
        raise typer.Exit


@app.callback()
def _program(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None: ...


@app.command()
def demo(
    out: Annotated[Path, typer.Option(help="folder to write")] = Path("runs/demo"),
    teacher_url: Annotated[str, typer.Option(help="URL of a teacher; local:MODEL starts one")] = "local:pocket:teacher",
    verifier_url: Annotated[str, typer.Option(help="URL of a verifier; local: starts one")] = "local:",
    seed: Annotated[int, typer.Option(help="the same seed gives the same run")] = 0,
    override: Annotated[
        list[str] | None, typer.Option("--set", help="[STAGE:]KEY=VALUE, STAGE one of traces, sft, train, eval")
    ] = None,
) -> None:
    """Run the whole recipe in the pocket world: minutes on two CPU cores."""
    from vold_trainer.config.stages import check_stages

    check_stages(override or ())
    from vold_trainer.paths import require_writable
    from vold_trainer.sources.check import check_service_urls

    check_service_urls(teacher_url, "--teacher-url", teacher=True)
    check_service_urls(verifier_url, "--verifier-url")
    require_writable(out, "--out", out)
    from vold_trainer.experiments.demo import run_demo

    run_demo(out, teacher_url=teacher_url, verifier_url=verifier_url, seed=seed, overrides=tuple(override or ()))


@app.command()
def traces(
    config: ConfigFile = None,
    overrides: Overrides = None,
    resume: Annotated[bool, typer.Option("--resume", help="go on with the answers of a command that ended")] = False,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="replace the file `out`, and unfinished traces")
    ] = False,
) -> None:
    """Generate cold-start traces with the teacher; the verifier may filter them."""
    from vold_trainer.config import TracesConfig
    from vold_trainer.runs.start import traces_are_complete

    settings = _load(TracesConfig, config, overrides, writes="traces")
    if traces_are_complete(settings.out, resume=resume, overwrite=overwrite):
        _print_line(f"{settings.out} is complete: nothing is left to do")
        return
    from vold_trainer.services.opening import opening

    with opening(settings) as opened:
        from vold_trainer.coldstart.traces import run_traces

        summary = run_traces(settings, resume=resume, opened=opened)
    Console(stderr=True).print(summary.table())
    dropped = summary.describe_dropped()
    _print_line(f"{summary.written} of {summary.requested} traces written to {settings.out}; dropped: {dropped}")


@app.command()
def sft(
    config: ConfigFile = None,
    overrides: Overrides = None,
    resume: Resume = False,
    step: FromStep = "last",
    overwrite: Overwrite = False,
) -> None:
    """Cold start: fine-tune a student on traces, with the loss on completion tokens only."""
    from vold_trainer.config import SftConfig
    from vold_trainer.runs.start import Start

    settings = _load(SftConfig, config, overrides, writes="run")
    Start(resume, step, overwrite).check(settings.out, settings.student.path)
    from vold_trainer.coldstart.sft import run_sft

    _print_line(f"student written to {run_sft(settings, resume=resume, step=step, overwrite=overwrite)}")


@app.command()
def train(
    config: ConfigFile = None,
    overrides: Overrides = None,
    resume: Resume = False,
    step: FromStep = "last",
    overwrite: Overwrite = False,
) -> None:
    """Train with GRPO, distillation, or both; teacher and verifier by URL."""
    from vold_trainer.config import TrainConfig
    from vold_trainer.runs.start import Start

    settings = _load(TrainConfig, config, overrides, writes="run")
    Start(resume, step, overwrite).check(settings.out, settings.student.path)
    from vold_trainer.services.opening import opening

    with opening(settings) if is_local_main_process() else nullcontext() as opened:
        from vold_trainer.training.train import run_train

        model = run_train(settings, resume=resume, step=step, overwrite=overwrite, opened=opened)
    _print_line(f"student written to {model}")


@app.command()
def export(
    run: Annotated[Path, typer.Argument(help="folder of an sft or train run")],
    out: Annotated[Path, typer.Argument(help="folder to write")],
    step: Annotated[str, typer.Option(help="which checkpoint: last, best, or a step number")] = "last",
    overwrite: Annotated[bool, typer.Option("--overwrite", help="replace the model in the folder")] = False,
) -> None:
    """Write a checkpoint as a transformers folder, which `from_pretrained` loads."""
    from vold_trainer.runs.start import refuse_existing

    refuse_existing(out / "config.json", overwrite)
    from vold_trainer.runs.export import run_export

    _print_line(f"the student after step {run_export(run, step, out)} written to {out}")


@app.command("eval")
def evaluate(
    config: ConfigFile = None,
    overrides: Overrides = None,
    fresh: Annotated[bool, typer.Option("--fresh", help="delete the answers that `out` holds")] = False,
    categories: Annotated[bool, typer.Option("--categories", help="print every category too")] = False,
) -> None:
    """Evaluate greedy and sampled accuracy of a student on one or more sets; continues from the answers in `out`."""
    from vold_trainer.config import EvalConfig

    settings = _load(EvalConfig, config, overrides, writes="eval")
    from vold_trainer.services.opening import opening

    with opening(settings) as opened:
        from vold_trainer.evaluation import run_eval
        from vold_trainer.evaluation.tables import category_table, result_table

        results = run_eval(settings, fresh=fresh, opened=opened)
    Console().print(result_table(results, settings.student.path))
    if categories and (table := category_table(results)) is not None:
        Console().print(table)


@app.command()
def verify(
    file: Annotated[str, typer.Argument(help="JSONL of completions and references; - is stdin")],
    verifier: Annotated[str, typer.Option(help="for lines without a field verifier")] = "math",
    out: Annotated[str, typer.Option("--out", "-o", help="JSONL of verdicts, in the same order; - is stdout")] = "-",
    url: Annotated[str, typer.Option(help="URL of a verifier; local: starts one")] = "local:",
    explain: Annotated[
        str | None, typer.Option(help="verify the line with this id alone, and print the reason")
    ] = None,
) -> None:
    """Verify the completions of a file; exit status 1 if a line is broken.

    A line: {"id", "completion", "reference"}, optionally "prompt", "options" ({"A": text, ...} or [text,
    ...]), "parameters" (the verifier's) and "verifier". A verdict: {"id", "reward", "correct", "extracted",
    "reason", "error", "seconds"}, with a reward of null if there is an error.
    """
    from vold_trainer.config import VerifierConfig
    from vold_trainer.verification.file import TIMEOUT_SECONDS, run_verify

    config = VerifierConfig(url=url, name=verifier, timeout=TIMEOUT_SECONDS)
    raise typer.Exit(run_verify(file, out, config, explain=explain))


@app.command()
def check(
    config: ConfigFile = None,
    overrides: Overrides = None,
    dry: Annotated[bool, typer.Option(help="run one small step too")] = True,
) -> None:
    """Check everything that a `vold train` config needs, before training; exit status 1 if there is an error."""
    from vold_trainer.config import TrainConfig, load
    from vold_trainer.errors import UsageError
    from vold_trainer.sources.check import check_files

    settings = load(TrainConfig, *_split(config, overrides))
    try:
        check_files(settings)
    except UsageError as error:  # what is known at once; the table of all topics takes seconds
        _print_error(error)
    from vold_trainer.checking import run_check

    result = run_check(settings, dry=dry)
    Console().print(result.table())
    raise typer.Exit(0 if result.passed else 1)


@app.command()
def report(
    runs: Annotated[list[Path], typer.Argument(help="folders of runs; several are compared")],
    out: Annotated[Path | None, typer.Option(help="the page to write; report.html in the first run by default")] = None,
    title: Annotated[str, typer.Option(help="title of the page")] = "vold run",
) -> None:
    """Write a self-contained HTML page about a run, or a comparison of several runs."""
    from vold_trainer.errors import UsageError
    from vold_trainer.report import build_report

    for run in runs:
        if not run.is_dir():
            raise UsageError(f"run folder {str(run)!r} does not exist: give the `out` of a run")
    _print_line(f"report written to {build_report(runs, out or runs[0] / 'report.html', title=title)}")


@app.command()
def ablation(
    study: Annotated[
        str, typer.Option(help="claim, components, terms, controls, weak, starts, sampled, steady, tuning")
    ] = "components",
    out: Annotated[Path, typer.Option(help="folder of the runs")] = Path("runs/ablation"),
    results: Annotated[
        Path, typer.Option(help="folder of the results, the table and the plot; rows with a result are not run again")
    ] = Path("benchmarks/ablation"),
    seeds: Annotated[str | None, typer.Option(help="as 11-18 or 11,13; the study's own unless given")] = None,
    workers: Annotated[int, typer.Option(help="rows run at the same time; they share the cores")] = 2,
    rows: Annotated[list[str] | None, typer.Option("--row", help="only these rows")] = None,
    override: Annotated[list[str] | None, typer.Option("--set", help="[STAGE:]KEY=VALUE for every row")] = None,
) -> None:
    """Compare the components of the method in the pocket world, seed by seed; write results, table and plot."""
    from vold_trainer.config.stages import check_stages

    check_stages(override or ())
    from vold_trainer.paths import require_writable

    require_writable(out, "--out", out)
    require_writable(results, "--results", results)
    from vold_trainer.experiments.ablation import run_ablation
    from vold_trainer.experiments.studies import parse_seeds

    numbers = None if seeds is None else parse_seeds(seeds)
    run_ablation(out, results, study=study, seeds=numbers, workers=workers, only=rows, overrides=tuple(override or ()))


def main() -> None:
    """Entry point: an error that a user can fix ends the command with its message and status 1."""
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(name)s: %(message)s")
    from vold_trainer.pocket_building.cli import app as pocket_app
    from vold_trainer.preparation.cli import app as prepare_app

    app.add_typer(pocket_app, name="pocket", help="The pocket world: its problems, its pictures, its checkpoints.")
    app.add_typer(prepare_app, name="prepare")
    try:
        app()
    except ReportedElsewhereError:
        sys.exit(1)
    except _errors_with_a_message() as error:
        if is_local_main_process() or processes_connected():
            _print_error(error)
        sys.exit(1)


def _errors_with_a_message() -> tuple[type[Exception], ...]:
    """The errors whose message is for the user. Those of the client, which takes half a second to import, are among
    them only if something has imported it.
    """
    client = sys.modules.get("vold_client")
    return (VoldTrainerError, IncompatibleVersionError, *(() if client is None else (client.VoldError,)))


def _print_error(error: Exception) -> None:
    Console(stderr=True).print(f"[red]error:[/] {escape(str(error))}", highlight=False, soft_wrap=True)


def _print_line(text: str) -> None:
    if is_main_process():
        Console().print(text, highlight=False, soft_wrap=True, markup=False)
