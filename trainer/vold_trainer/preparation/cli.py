"""The commands of `vold prepare`."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from vold_trainer.preparation.layouts import Layout

app = typer.Typer(
    no_args_is_help=True,
    help="Make files of vold's form from published data sets, which you download. Tried on hand-made rows.",
)

Files = Annotated[list[Path], typer.Argument(metavar="FILE", help="the published files, in order")]
Out = Annotated[Path, typer.Option("--out", "-o", help="JSONL to write")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="replace the file")]
SkipBroken = Annotated[bool, typer.Option("--skip-broken", help="leave broken rows out, and count them")]


@app.command()
def orz57k(files: Files, out: Out, overwrite: Overwrite = False, skip_broken: SkipBroken = False) -> None:
    """Open-Reasoner-Zero's 57k questions with answers: rows of `prompt` and `reference`.

    Follows data/orz_math_57k_collected.json of github.com/Open-Reasoner-Zero/Open-Reasoner-Zero at commit f6d1ec7
    (2025-02-20): an array of rows of two turns, {"from": "human", "value"} and {"from": "assistant", "ground_truth":
    {"value"}}. Tried on hand-made rows of that form. Anything else in a row is an error.
    """
    from vold_trainer.preparation import ORZ57K

    _prepare(ORZ57K, files, out, overwrite=overwrite, skip_broken=skip_broken)


@app.command()
def mixture_of_thoughts(
    files: Files,
    out: Out,
    overwrite: Overwrite = False,
    skip_broken: SkipBroken = False,
    completions: Annotated[bool, typer.Option(help="keep DeepSeek-R1's completions, for `vold sft`")] = False,
) -> None:
    """The 350k questions of Mixture-of-Thoughts: rows of `prompt` and `category`, with an empty `reference`.

    Follows the Parquet files of huggingface.co/datasets/open-r1/Mixture-of-Thoughts at revision ec22eec: columns
    messages (a turn of the user, a turn of the assistant), num_tokens and source. Tried on hand-made rows of that form.
    Another column, key or role is an error. The data set has no reference answers: use the rows with keep=all.
    """
    from vold_trainer.preparation import MIXTURE_OF_THOUGHTS

    _prepare(MIXTURE_OF_THOUGHTS, files, out, overwrite=overwrite, skip_broken=skip_broken, completions=completions)


@app.command()
def geometry3k(files: Files, out: Out, overwrite: Overwrite = False, skip_broken: SkipBroken = False) -> None:
    """Geometry3K: rows of `prompt`, `images` and `reference`, and the pictures in a folder beside them.

    Follows the Parquet files of huggingface.co/datasets/hiyouga/geometry3k as EasyR1 and verl read them in 2025, which
    name no revision: columns images (a list of pictures with their bytes), problem (with <image> for each) and answer.
    Tried on hand-made rows of that form. Another column is an error.
    """
    from vold_trainer.preparation import GEOMETRY3K

    _prepare(GEOMETRY3K, files, out, overwrite=overwrite, skip_broken=skip_broken)


def _prepare(
    layout: "Layout",
    files: list[Path],
    out: Path,
    *,
    overwrite: bool,
    skip_broken: bool,
    completions: bool = False,
) -> None:
    from rich.console import Console

    from vold_trainer.preparation import run_prepare

    prepared = run_prepare(layout, files, out, overwrite=overwrite, skip_broken=skip_broken, completions=completions)
    Console().print(prepared.table())
    Console().print(f"written to {out}", highlight=False, soft_wrap=True, markup=False)
