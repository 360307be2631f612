"""`vold ablation`: the rows of a study in the pocket world, several seeds a row, compared seed by seed.

Each result is a line of a file, written as soon as it is there, and a row that has a line is not run again: an
interrupted study continues where it stopped, on this machine or, with the file, on another.
"""

import contextlib
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from rich.table import Table

from vold_trainer.errors import UsageError
from vold_trainer.experiments.controls import shuffled, uniform_teacher, weak_teacher
from vold_trainer.experiments.outcome import read_outcome
from vold_trainer.experiments.paired import compare
from vold_trainer.experiments.stages import Recipe, pocket_services
from vold_trainer.experiments.studies import BASE, PASSES, STARTS, STUDIES, UNIFORM_TEACHER, WEAK_TEACHER, Row, Study
from vold_trainer.experiments.workers import share_of_threads, worker_processes
from vold_trainer.files import read_json_lines, write_json, write_lines
from vold_trainer.report import write_ablation
from vold_trainer.services.local import Services
from vold_trainer.terminal import console, progress

BASE_STUDENT = "pocket:student"
VERIFIER = "local:"
TEACHERS: Mapping[str, str] = {}
"""URLs of running teachers, by name, for those that need not be started."""
MADE: Mapping[str, Callable[[Path], Path]] = {UNIFORM_TEACHER: uniform_teacher, WEAK_TEACHER: weak_teacher}
"""Teachers that are made from a pocket checkpoint, in a folder."""
ACCURACIES = ("text_accuracy", "image_accuracy")


def run_ablation(
    out: Path,
    results: Path,
    *,
    study: str = "claim",
    seeds: Sequence[int] | None = None,
    workers: int = 1,
    only: Sequence[str] | None = None,
    overrides: tuple[str, ...] = (),
) -> dict[str, Any]:
    """Run the rows of a study that have no line yet in its file of `results`, in folders under `out`; write the study's
    table and plot into `results`, and return what they show.

    seeds: in place of the study's own. workers: how many rows run at the same time, each in a process of its own,
    sharing the cores. Raises UsageError for an unknown study or row.
    """
    chosen = find_study(study)
    rows = find_rows(study, only)
    numbers = tuple(seeds) if seeds is not None else chosen.seeds
    lines = results / f"{chosen.measure}.jsonl"
    known = {(line["row"], line["seed"]) for line in read_json_lines(lines)}
    missing = [(row, seed) for seed, row in _by_seed(rows, numbers) if (row.name, seed) not in known]
    if missing:
        _run_missing(out, lines, chosen, missing, workers, overrides)
    result = collect(study, rows, numbers, lines)
    write_ablation(result, results)
    write_json(out / "ablation.json", result)
    console.print(summary_table(result))
    return result


def _run_missing(
    out: Path, lines: Path, study: Study, missing: Sequence[tuple[Row, int]], workers: int, overrides: tuple[str, ...]
) -> None:
    """Run rows of seeds, and add the line of each to the results file as it ends."""
    if workers > 1:  # together no more threads than cores
        threads = share_of_threads(workers)
        overrides = (*(f"{stage}:threads={threads}" for stage in ("sft", "train", "eval")), *overrides)
    starts = list(dict.fromkeys((seed, row.start) for row, seed in missing if row.start != BASE))
    named = {STARTS[start].teacher for _, start in starts} | {row.teacher for row, _ in missing if row.objective}
    with contextlib.ExitStack() as stack:
        teachers = {name: stack.enter_context(_services(name, out)) for name in sorted(named)}
        idle = next(iter(teachers.values())) if teachers else stack.enter_context(_services(None, out))

        def recipe(seed: int, teacher: str) -> Recipe:
            return Recipe(out / f"seed-{seed}", teachers.get(teacher, idle), seed, overrides)

        pool = stack.enter_context(worker_processes(workers, __name__)) if workers > 1 else None
        cold = [(recipe(seed, STARTS[name].teacher), name) for seed, name in starts]
        for _ in _results("cold starts", cold_start, cold, pool):
            pass
        jobs = [(recipe(seed, row.teacher), row, study) for row, seed in missing]
        for line in _results(study.title, run_row, jobs, pool):
            _add_line(lines, line)


def find_study(name: str) -> Study:
    """The study of this name. Raises UsageError if there is none."""
    if name not in STUDIES:
        raise UsageError(f"--study {name!r} is no study; choose from {', '.join(STUDIES)}")
    return STUDIES[name]


def find_rows(study: str, only: Sequence[str] | None) -> list[Row]:
    """The rows of a study with these names; all of them without names. Raises UsageError for an unknown one."""
    known = find_study(study).by_name
    if unknown := sorted(set(only or ()) - set(known)):
        raise UsageError(f"--row {unknown[0]!r} is no row of the study {study!r}; choose from {', '.join(known)}")
    return [row for row in known.values() if only is None or row.name in only]


def _by_seed(rows: Sequence[Row], seeds: Sequence[int]) -> Iterator[tuple[int, Row]]:
    """Every row of one seed before those of the next, so that what is compared is there early."""
    for place, seed in enumerate(seeds):
        for row in rows:
            if row.seeds is None or place < row.seeds:
                yield seed, row


def _services(teacher: str | None, out: Path) -> contextlib.AbstractContextManager[Services]:
    """Teacher and verifier, as child processes unless the teacher runs already."""
    if teacher is None:
        return pocket_services(None, VERIFIER)
    path = str(MADE[teacher](out / f"{teacher}-teacher")) if teacher in MADE else teacher
    return pocket_services(TEACHERS.get(teacher, f"local:{path}"), VERIFIER)


def _results(
    label: str, function: Callable[..., Any], jobs: Sequence[tuple[Any, ...]], pool: ProcessPoolExecutor | None
) -> Iterator[Any]:
    """The result of each job as it ends: one after another, or in the processes of the pool."""
    if pool is None:
        for job in jobs:
            yield function(*job)
        return
    with progress(label, len(jobs)) as live:
        for done, future in enumerate(as_completed([pool.submit(function, *job) for job in jobs]), 1):
            yield future.result()
            live.update(done)


def run_row(recipe: Recipe, row: Row, study: Study) -> dict[str, Any]:
    """Train and evaluate one row of one seed, and return its line. The cold start must exist. What is in the row's
    folder is not done again.
    """
    answers = recipe.out / (row.name if study.measure == study.split else f"{row.name}-{study.measure}")
    if not (answers / "eval.json").is_file():
        sets = [
            f"{{source: pocket, split: {study.split}, modality: {modality}, limit: {study.problems}}}"
            for modality in ("text", "image")
        ]
        sampling = f"sampling={{n: {study.samples}, k: {list(PASSES) if study.samples else []}}}"
        recipe.evaluate(_student(recipe, row), answers.name, f"data=[{', '.join(sets)}]", sampling)
    return read_outcome(answers, recipe.out / row.name, row.name, recipe.seed, study)


def _student(recipe: Recipe, row: Row) -> Path | str:
    """The student that the row evaluates, trained if it is not there."""
    start = BASE_STUDENT if row.start == BASE else _cold_start_model(recipe, row.start)
    if row.objective is None:
        return start
    model = recipe.out / row.name / "model"
    if (model / "config.json").is_file():
        return model
    change = shuffled if row.control == "shuffled" else None
    return recipe.train(row.objective, start, row.name, *row.overrides, change=change)


def cold_start(recipe: Recipe, name: str) -> Path:
    """Generate traces and fine-tune a student on them, unless that student exists. Returns the student's folder."""
    model = _cold_start_model(recipe, name)
    if (model / "config.json").is_file():
        return model
    own = replace(recipe, overrides=(*STARTS[name].overrides, *recipe.overrides))
    traces, _ = own.traces(f"traces-{name}.jsonl")
    return own.sft(traces, f"start-{name}")


def _cold_start_model(recipe: Recipe, name: str) -> Path:
    return recipe.out / f"start-{name}" / "model"


def _add_line(path: Path, line: Mapping[str, Any]) -> None:
    """Add a line to a results file, which stays in the order of rows and seeds."""
    key = (line["row"], line["seed"])
    others = [other for other in read_json_lines(path) if (other["row"], other["seed"]) != key]
    write_lines(path, sorted([*others, line], key=lambda each: (each["row"], each["seed"])))


def collect(study: str, rows: Sequence[Row], seeds: Sequence[int], lines: Path) -> dict[str, Any]:
    """The results of a study: {"name", "title", "n", "baseline", "rows": [{"name", "label", "seeds": [line, ...],
    "minus": {accuracy: the row minus the baseline, see `Paired`}}]}.
    """
    chosen = find_study(study)
    by_key = {(line["row"], line["seed"]): line for line in read_json_lines(lines)}
    found = []
    n = 0
    for row in rows:
        own = [by_key[row.name, seed] for seed in seeds if (row.name, seed) in by_key]
        n = max([n, *(line["n"] for line in own)])
        baseline = row.minus or chosen.baseline
        values, others = _values(by_key, row.name, seeds), _values(by_key, baseline, seeds)
        minus = {}
        for key in ACCURACIES:
            paired = compare(values[key], others[key])
            if paired is not None and row.name != baseline:
                minus[key] = {**asdict(paired), "says": paired.describe()}
        found.append({"name": row.name, "label": row.label, "seeds": own, "minus": minus})
    return {
        "name": study,
        "title": chosen.title,
        "n": n,
        "split": chosen.split,
        "baseline": chosen.by_name[chosen.baseline].label,
        "rows": found,
        "command": f"vold ablation --study {study}",
    }


def _values(
    by_key: Mapping[tuple[str, int], Mapping[str, Any]], row: str, seeds: Sequence[int]
) -> dict[str, dict[int, float]]:
    return {key: {seed: by_key[row, seed][key] for seed in seeds if (row, seed) in by_key} for key in ACCURACIES}


def summary_table(result: Mapping[str, Any]) -> Table:
    """A table with the mean and standard deviation over seeds of each row, and the difference from the baseline."""
    table = Table(title=f"{result['title']} ({result['split']} set of {result['n']} problems)")
    heads = ("row", "text", "pictures", f"minus {result['baseline']}, text", "pictures", "misread", "reward", "seeds")
    for head in heads:
        table.add_column(head, justify="left" if head == "row" else "right")
    for row in result["rows"]:
        cells = [_mean_and_spread([seed[key] for seed in row["seeds"]]) for key in ACCURACIES]
        cells += [row["minus"].get(key, {}).get("says", "") for key in ACCURACIES]
        cells.append(_mean([seed.get("image_misread") for seed in row["seeds"]], "{:.1%}"))
        cells.append(_mean([seed.get("reward_over_stage") for seed in row["seeds"]], "{:.3f}"))
        table.add_row(row["label"], *cells, str(len(row["seeds"])))
    return table


def _mean(values: Sequence[float | None], form: str) -> str:
    known = [value for value in values if value is not None]
    return form.format(statistics.fmean(known)) if known else ""


def _mean_and_spread(values: Sequence[float]) -> str:
    if not values:
        return ""
    spread = statistics.stdev(values) if len(values) > 1 else 0.0
    return f"{statistics.fmean(values):.1%} ± {spread:.1%}"
