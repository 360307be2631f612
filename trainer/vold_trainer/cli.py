"""The command line: vold demo | traces | sft | train | export | eval | verify | check | report | ablation | pocket."""

import logging
import os
import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from vold_proto.distribution import VERSION, UnfitError

from vold_trainer.errors import ToldElsewhereError, VoldTrainerError
from vold_trainer.launch import connected, first_here, speaks

# No child of this command goes on as a fork, and without this gRPC writes a line about every one that is started.
os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "0")

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Teach a vision-language model to reason from a text-only teacher.",
)

ConfigFile = Annotated[Path | None, typer.Argument(help="YAML file; pocket:NAME for one that ships with vold")]
Overrides = Annotated[list[str] | None, typer.Argument(help="KEY=VALUE, dotted: optim.lr=1e-4")]
Resume = Annotated[bool, typer.Option("--resume", help="go on from the run's last checkpoint")]


def _split(config: Path | None, overrides: list[str] | None) -> tuple[Path | None, list[str]]:
    """A first argument with an = in it is an override, not a file."""
    given = list(overrides or [])
    if config is not None and "=" in str(config):
        return None, [str(config), *given]
    return config, given


def _say_version(asked: bool) -> None:
    if asked:
        typer.echo(f"vold {VERSION}")
        raise typer.Exit


@app.callback()
def _program(
    version: Annotated[
        bool, typer.Option("--version", callback=_say_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None: ...


@app.command()
def demo(
    out: Annotated[Path, typer.Option(help="folder to write")] = Path("runs/demo"),
    teacher_url: Annotated[str, typer.Option(help="a teacher; local:... starts one")] = "local:pocket:teacher",
    verifier_url: Annotated[str, typer.Option(help="a verifier; local: starts one")] = "local:",
    seed: Annotated[int, typer.Option(help="the same seed gives the same run")] = 0,
    override: Annotated[
        list[str] | None, typer.Option("--set", help="[STAGE:]KEY=VALUE, STAGE one of traces, sft, train, eval")
    ] = None,
) -> None:
    """The main job, end to end, in the pocket world: minutes on two CPU cores."""
    from vold_trainer.experiments.demo import run_demo

    run_demo(out, teacher_url=teacher_url, verifier_url=verifier_url, seed=seed, overrides=tuple(override or ()))


@app.command()
def traces(config: ConfigFile = None, overrides: Overrides = None) -> None:
    """Cold-start traces: the teacher answers prompts, the verifier may filter them."""
    from vold_trainer.coldstart.traces import run_traces
    from vold_trainer.config import TracesConfig, load

    settings = load(TracesConfig, *_split(config, overrides))
    summary = run_traces(settings)
    _say(f"kept {summary.kept} of {summary.asked} traces in {settings.out}; dropped {summary.dropped or 'none'}")


@app.command()
def sft(config: ConfigFile = None, overrides: Overrides = None, resume: Resume = False) -> None:
    """Cold start: fine-tune a student on traces, loss on the completions only."""
    from vold_trainer.coldstart.sft import run_sft
    from vold_trainer.config import SftConfig, load

    _say(f"student written to {run_sft(load(SftConfig, *_split(config, overrides)), resume=resume)}")


@app.command()
def train(config: ConfigFile = None, overrides: Overrides = None, resume: Resume = False) -> None:
    """GRPO, distillation, or both, with teacher and verifier by URL."""
    from vold_trainer.config import TrainConfig, load
    from vold_trainer.training.train import run_train

    _say(f"student written to {run_train(load(TrainConfig, *_split(config, overrides)), resume=resume)}")


@app.command()
def export(
    run: Annotated[Path, typer.Argument(help="folder of an sft or train run")],
    out: Annotated[Path, typer.Argument(help="folder to write")],
    step: Annotated[str, typer.Option(help="which checkpoint: last, best, or a step")] = "last",
) -> None:
    """A checkpoint as an ordinary transformers folder, which `from_pretrained` loads."""
    from vold_trainer.runs.export import run_export

    _say(f"the student after step {run_export(run, step, out)} written to {out}")


@app.command("eval")
def evaluate(
    config: ConfigFile = None,
    overrides: Overrides = None,
    fresh: Annotated[bool, typer.Option("--fresh", help="drop the answers that `out` holds")] = False,
    categories: Annotated[bool, typer.Option("--categories", help="print every category too")] = False,
) -> None:
    """Greedy and sampled accuracy of a student on one or more sets; goes on from the answers that `out` holds."""
    from vold_trainer.config import EvalConfig, load
    from vold_trainer.evaluation import run_eval
    from vold_trainer.evaluation.tables import category_table, result_table

    settings = load(EvalConfig, *_split(config, overrides))
    results = run_eval(settings, fresh=fresh)
    Console().print(result_table(results, settings.student.path))
    if categories and (table := category_table(results)) is not None:
        Console().print(table)


@app.command()
def verify(
    file: Annotated[str, typer.Argument(help="JSONL of completions and references; - is stdin")],
    verifier: Annotated[str, typer.Option(help="which judges the lines that name none")] = "math",
    out: Annotated[str, typer.Option("--out", "-o", help="JSONL of verdicts, in the same order; - is stdout")] = "-",
    url: Annotated[str, typer.Option(help="a verifier; local: starts one")] = "local:",
    explain: Annotated[str | None, typer.Option(help="judge the line with this id alone, and say why")] = None,
) -> None:
    """Judge the completions of a file; status 1 where a line was broken.

    A line: {"id", "completion", "reference"}, and where wanted "prompt", "options" ({"A": text, ...} or [{"A": text},
    ...]), "params" (the verifier's parameters) and "verifier". A verdict: {"id", "reward", "correct", "extracted",
    "reason", "error", "seconds"}, with a reward of null where there is an error.
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
    """Look at all that a `vold train` config needs, before it spends anything; status 1 where something is wrong."""
    from vold_trainer.checking import run_check
    from vold_trainer.config import TrainConfig, load

    found = run_check(load(TrainConfig, *_split(config, overrides)), dry=dry)
    Console().print(found.table())
    raise typer.Exit(0 if found.all_well else 1)


@app.command()
def report(
    runs: Annotated[list[Path], typer.Argument(help="folders of runs; several are compared")],
    out: Annotated[Path | None, typer.Option(help="the page to write; report.html in the first run by default")] = None,
    title: Annotated[str, typer.Option(help="what the page is called")] = "vold run",
) -> None:
    """One self-contained HTML page about one run, or comparing several."""
    from vold_trainer.errors import UsageError
    from vold_trainer.report import build_report

    for run in runs:
        if not run.is_dir():
            raise UsageError(f"run folder {str(run)!r} does not exist: give the `out` of a run")
    _say(f"report written to {build_report(runs, out or runs[0] / 'report.html', title=title)}")


@app.command()
def ablation(
    out: Annotated[Path, typer.Option(help="folder to write; what is there already is not run again")] = Path(
        "runs/ablation"
    ),
    results: Annotated[Path, typer.Option(help="where the table and the plot go")] = Path("benchmarks"),
    seeds: Annotated[int, typer.Option(help="runs of every row")] = 3,
    workers: Annotated[int, typer.Option(help="rows run at the same time; they share the cores")] = 2,
    rows: Annotated[list[str] | None, typer.Option("--row", help="only these rows")] = None,
    override: Annotated[list[str] | None, typer.Option("--set", help="[STAGE:]KEY=VALUE for every row")] = None,
) -> None:
    """The paper's component table in the pocket world, several seeds, with its plot."""
    from vold_trainer.experiments.ablation import run_ablation

    run_ablation(out, results, seeds=seeds, workers=workers, only=rows, overrides=tuple(override or ()))


def main() -> None:
    """Entry point: errors of use end with their message and status 1."""
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(name)s: %(message)s")
    from vold_client import VoldError

    from vold_trainer.pocket_building.cli import app as pocket_app

    app.add_typer(pocket_app, name="pocket", help="The pocket world: its problems, its pictures, its checkpoints.")
    try:
        app()
    except ToldElsewhereError:
        sys.exit(1)
    except (VoldTrainerError, VoldError, UnfitError) as error:
        if first_here() or connected():
            Console(stderr=True).print(f"[red]error:[/] {error}", highlight=False, soft_wrap=True)
        sys.exit(1)


def _say(text: str) -> None:
    if speaks():
        Console().print(text, highlight=False, soft_wrap=True)
