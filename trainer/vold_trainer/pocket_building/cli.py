"""`vold pocket`: build the checkpoints, show problems."""

from pathlib import Path
from typing import Annotated

import typer
from PIL import Image
from rich.console import Console
from rich.table import Table

from vold_trainer.pocket.problems import DEFAULT_DIFFICULTY, Difficulty, Split

app = typer.Typer(no_args_is_help=True, help="The pocket world: arithmetic that fits two CPU cores.")


@app.command()
def build(
    out: Annotated[Path | None, typer.Option(help="folder to write; the package's own unless given")] = None,
    seed: Annotated[int, typer.Option(help="of weights, problems and their order")] = 0,
    only: Annotated[list[str] | None, typer.Option(help="teacher, teacher-b or student; may be repeated")] = None,
) -> None:
    """Train the teacher, the other teacher and the base student, and record their accuracies in BUILD.json."""
    from vold_trainer.pocket.shipped import CHECKPOINT_NAMES, CHECKPOINTS
    from vold_trainer.pocket_building import build as recipes
    from vold_trainer.terminal import ProgressLine, console, progress

    names = tuple(only or CHECKPOINT_NAMES)
    for name in names:
        if name not in CHECKPOINT_NAMES:
            raise typer.BadParameter(
                f"{name!r} is unknown; choose one of {', '.join(CHECKPOINT_NAMES)}", param_hint="only"
            )
    folder = out or CHECKPOINTS
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        steps = sum(recipe.steps for recipe in recipes.recipes_of(name))
        with progress(f"training {name}", steps) as live:

            def show_step(step: int, metrics: dict[str, float], live: ProgressLine = live) -> None:
                live.update(step, **metrics)

            record = recipes.build(name, folder, seed=seed, progress=show_step)
        accuracies = ", ".join(f"{key} {value:.1%}" for key, value in record.accuracies.items())
        console.print(f"{folder / name}: {record.parameters:,} parameters, {record.seconds:.0f} s, {accuracies}")


@app.command()
def show(
    split: Annotated[str, typer.Option(help="train, validation or test")] = "test",
    n: Annotated[int, typer.Option(min=1, help="how many problems")] = 12,
    seed: Annotated[int, typer.Option(help="of the problems")] = 0,
    min_terms: Annotated[int, typer.Option(help="fewest numbers in an expression")] = DEFAULT_DIFFICULTY.min_terms,
    max_terms: Annotated[int, typer.Option(help="most numbers in an expression")] = DEFAULT_DIFFICULTY.max_terms,
    sheet: Annotated[Path, typer.Option(help="PNG file for the pictures")] = Path("pocket.png"),
) -> None:
    """Print a few problems with the teacher's chain, and draw their pictures on one sheet."""
    from vold_trainer.pocket.chains import teacher_chain
    from vold_trainer.pocket.problems import sample_problems
    from vold_trainer.pocket.world import make_example

    try:
        problems = sample_problems(_split(split), n, seed=seed, difficulty=Difficulty(min_terms, max_terms))
    except ValueError as error:
        raise typer.BadParameter(str(error)) from error
    table = Table("id", "family", "prompt", "chain")
    for problem in problems:
        prompt = make_example(problem, "text", seed=seed).messages[0]["content"]
        table.add_row(problem.id, problem.family, prompt, teacher_chain(problem))
    console = Console(markup=False)
    console.print(table)
    contact_sheet([make_example(problem, "image", seed=seed).images[0] for problem in problems]).save(sheet)
    console.print(f"pictures: {sheet}")


def contact_sheet(pictures: list[Image.Image], margin: int = 8) -> Image.Image:
    """The pictures below each other, on grey."""
    width = max(picture.width for picture in pictures) + 2 * margin
    height = sum(picture.height + margin for picture in pictures) + margin
    paper = Image.new("RGB", (width, height), "grey")
    top = margin
    for picture in pictures:
        paper.paste(picture, (margin, top))
        top += picture.height + margin
    return paper


def _split(name: str) -> Split:
    match name:
        case "train" | "validation" | "test":
            return name
    raise ValueError(f"split={name!r} is unknown; choose one of train, validation, test")
