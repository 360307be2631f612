"""What `vold ablation` runs: the studies, their rows, and the cold starts that rows share.

A row is a chain of stages in the pocket world: a start, a second stage or none, an evaluation. All rows of a seed have
the same traces, the same cold start and the same prompts, so that rows are compared seed by seed.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

from vold_trainer.errors import UsageError

BASE = "base"
"""The start of a row that has no cold start."""
TEACHER, OTHER_TEACHER, UNIFORM_TEACHER, WEAK_TEACHER = "pocket:teacher", "pocket:teacher-b", "uniform", "weak"
RATES = ("5e-5", "1e-4", "2e-4", "4e-4")
"""The learning rates of the second stage at which every arm of the claim is reported."""
CHOSEN: Mapping[str, str] = {"grpo": "1e-4", "vold": "2e-4", "candidates": "4e-4", "opd": "4e-4"}
"""The rate of each arm, chosen on the tuning seeds and the validation problems; the shipped configs have it."""
PASSES = (1, 8, 32)
"""The k of pass@k."""
SIZES = (100, 300, 1000, 3000)
"""Traces of the cold starts of several sizes."""
TUNING_SEEDS, CLAIM_SEEDS = (101, 102, 103), tuple(range(11, 19))


@dataclass(frozen=True)
class Start:
    """A cold start: the teacher of its traces, and the settings in which it differs from the shipped configs."""

    teacher: str = TEACHER
    overrides: tuple[str, ...] = ()


STARTS: Mapping[str, Start] = {
    "sft": Start(),
    "sft-other": Start(teacher=OTHER_TEACHER),
    **{f"sft-{traces}": Start(overrides=(f"traces:data.limit={traces}",)) for traces in SIZES},
}


@dataclass(frozen=True)
class Row:
    """A row of a study.

    start: BASE or a key of STARTS. objective: the shipped config of the second stage; None for none. teacher: of the
    second stage. control: "shuffled" gives each token the teacher's score of another token of its completion.
    seeds: how many of the study's seeds the row has; None for all. minus: the row that is subtracted from it, in place
    of the study's baseline.
    """

    name: str
    label: str
    start: str = "sft"
    objective: str | None = None
    overrides: tuple[str, ...] = ()
    teacher: str = TEACHER
    control: str | None = None
    seeds: int | None = None
    minus: str | None = None


@dataclass(frozen=True)
class Study:
    """A set of rows. baseline: the row that is subtracted from the others, seed by seed. split: of the problems in
    the evaluation. problems: how many of them, as text and again as pictures. samples: answers to each that are drawn
    at temperature 1, for pass@k, besides the greedy one. measure: names the file of the results; rows of studies with
    one measure are evaluated alike. Empty: the split.
    """

    title: str
    rows: tuple[Row, ...]
    baseline: str
    seeds: tuple[int, ...]
    split: str = "test"
    problems: int = 1000
    samples: int = 0
    measure: str = ""
    by_name: Mapping[str, Row] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "by_name", {row.name: row for row in self.rows})
        object.__setattr__(self, "measure", self.measure or self.split)


PAPER, CANDIDATES = "vold", "vold-candidates"
"""The shipped configs of the two forms of VOLD."""
_OPD = "objective={name: opd-top-k}"
_ANY_TEACHER = "teacher.sane=warn"
"""A run stops at a teacher whose values no language model gives, unless told otherwise."""


def _row(name: str, label: str, objective: str | None, *overrides: str, start: str = "sft", **settings: Any) -> Row:
    return Row(name, label, start, objective, overrides, **settings)


_few = partial(_row, seeds=3)
"""A row that carries no claim."""

_ARMS = (
    _row("grpo", "SFT + GRPO", "grpo"),
    _row("vold", "VOLD, the paper's form", PAPER),
    _row("candidates", "VOLD, candidates", CANDIDATES),
    _row("opd", "distillation alone, candidates", CANDIDATES, _OPD),
)
_GRPO, _VOLD, _CANDIDATES, _DISTILLATION = _ARMS


def at_rate(arm: Row, rate: str) -> Row:
    """The row of an arm at one rate of the grid; at the chosen rate it has the name of the arm alone."""
    name = arm.name if rate == CHOSEN[arm.name] else f"{arm.name}@{rate}"
    return replace(arm, name=name, label=f"{arm.label}, {rate}", overrides=(*arm.overrides, f"optim.lr={rate}"))


_SFT = _row("sft", "SFT", None)
_GRID = (_SFT, *(at_rate(arm, rate) for arm in _ARMS for rate in RATES))
_COMPONENTS = (
    _row("base", "base student", None, start=BASE),
    _SFT,
    _few("grpo-only", "GRPO without SFT", "grpo", start=BASE),
    _few("opd-only", "distillation alone, without SFT", PAPER, "objective={name: opd, eps_high: 0.3}", start=BASE),
    _few("vold-no-sft", "VOLD without SFT", PAPER, start=BASE),
    _GRPO,
    _VOLD,
    _few("vold-unmasked", "VOLD, the paper's form, unmasked", PAPER, "objective.masked=false"),
    _CANDIDATES,
    _DISTILLATION,
    _few("other-sft", "SFT on another teacher's traces", None, start="sft-other"),
    _few("other-grpo", "another teacher's SFT, then GRPO", "grpo", start="sft-other"),
    _few("other-vold", "another teacher's SFT, then VOLD", PAPER, start="sft-other"),
    _few("other-capped", "the same with gap_cap 2", PAPER, "objective.gap_cap=2.0", start="sft-other"),
    _few(
        "other-own",
        "another teacher's SFT, then VOLD with that teacher",
        PAPER,
        start="sft-other",
        teacher=OTHER_TEACHER,
    ),
)
_TERMS = (
    _GRPO,
    _VOLD,
    *(
        _few(f"vold-beta-{b}", f"the paper's form, beta {b}", PAPER, f"objective.beta={b}")
        for b in ("1e-3", "1e-2", "1")
    ),
    _few("vold-capped", "the paper's form, gap_cap 2", PAPER, "objective.gap_cap=2.0"),
    _few("k3", "k3 on the sampled token", PAPER, "objective.divergence=k3"),
    _CANDIDATES,
    *(
        _few(f"candidates-beta-{b}", f"candidates, beta {b}", CANDIDATES, f"objective.beta={b}")
        for b in ("0.1", "0.3", "3")
    ),
    *(
        _few(
            f"{side}-{k}",
            f"reverse KL, the {side}'s {k} ids",
            CANDIDATES,
            f"objective.support={side}",
            f"objective.top_k={k}",
        )
        for side, k in (("student", 4), ("student", 64), ("teacher", 4), ("teacher", 16), ("teacher", 64))
    ),
    _few(
        "forward",
        "forward KL, the teacher's 16 ids",
        CANDIDATES,
        "objective.support=teacher",
        "objective.divergence=forward-kl",
    ),
    _few("candidates-unmasked", "candidates, unmasked", CANDIDATES, "objective.masked=false"),
    _few("opd-then-rl", "distillation for 60 steps, then GRPO", PAPER, "objective={name: opd-then-rl}"),
    _few(
        "opd-then-rl-plateau",
        "distillation until it levels off, then GRPO",
        PAPER,
        "objective={name: opd-then-rl, switch: plateau}",
    ),
    _few("vold-annealed", "the paper's form, beta falls to 0", PAPER, "objective.anneal=1e-3"),
    _few("candidates-annealed", "candidates, beta falls to 0", CANDIDATES, "objective.anneal=1e-2"),
    _few("grpo-kl", "GRPO, kl_beta 1e-2", "grpo", "objective.kl_beta=1e-2"),
    _few("grpo-entropy", "GRPO, entropy_bonus 1e-2", "grpo", "objective.entropy_bonus=1e-2"),
)
_UNIFORM: dict[str, Any] = {"teacher": UNIFORM_TEACHER, "seeds": 3}
_CONTROLS = (
    _GRPO,
    _VOLD,
    _few("vold-shuffled", "the paper's form, scores of shuffled positions", PAPER, control="shuffled"),
    _row("vold-uniform", "the paper's form, a uniform teacher", PAPER, _ANY_TEACHER, **_UNIFORM),
    _CANDIDATES,
    _row("candidates-uniform", "candidates, a uniform teacher", CANDIDATES, _ANY_TEACHER, **_UNIFORM),
)
_WEAK = (
    _GRPO,
    *(
        replace(arm, name=f"{arm.name}-weak", label=f"{arm.label}, a weak teacher", teacher=WEAK_TEACHER)
        for arm in (_VOLD, _CANDIDATES, _DISTILLATION)
    ),
)
_STARTS = tuple(
    replace(
        arm,
        name=f"{arm.name}-from-{n}",
        label=f"{arm.label}, {n} traces",
        start=f"sft-{n}",
        seeds=3,
        minus=f"grpo-from-{n}",
    )
    for n in SIZES
    for arm in (_SFT, _GRPO, _VOLD, _CANDIDATES)
)

_SAMPLED = tuple(replace(row, seeds=3) for row in (_SFT, *_ARMS))

STUDIES: Mapping[str, Study] = {
    "tuning": Study("Rates of the second stage, tuning seeds", _GRID, "grpo", TUNING_SEEDS, "validation", 500),
    "claim": Study("What the teacher adds to the second stage", _GRID, "grpo", CLAIM_SEEDS),
    "components": Study("Components", _COMPONENTS, "grpo", CLAIM_SEEDS),
    "terms": Study("Forms of the teacher's term", _TERMS, "grpo", CLAIM_SEEDS),
    "controls": Study("Negative controls", _CONTROLS, "grpo", CLAIM_SEEDS),
    "weak": Study("A weak teacher", _WEAK, "grpo", CLAIM_SEEDS),
    "starts": Study("Cold starts of several sizes", _STARTS, "grpo-from-1000", CLAIM_SEEDS),
    "sampled": Study("Sampled answers", _SAMPLED, "grpo", CLAIM_SEEDS, "test", 200, max(PASSES), "sampled"),
    "steady": Study("Steadiness", (_SFT, *_ARMS), "grpo", TUNING_SEEDS, "validation", 2000, measure="steady"),
}


def parse_seeds(text: str) -> tuple[int, ...]:
    """The seeds that `11-13` or `11,13` names. Raises UsageError for any other text."""
    if match := re.fullmatch(r"(\d{1,6})-(\d{1,6})", text):
        first, last = int(match[1]), int(match[2])
        if first <= last < first + 1000:
            return tuple(range(first, last + 1))
    elif re.fullmatch(r"\d{1,6}(,\d{1,6})*", text):
        return tuple(dict.fromkeys(map(int, text.split(","))))
    raise UsageError(f"--seeds {text!r} names no seeds: write a range as 11-18, or a list as 11,13")
