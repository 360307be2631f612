"""Whether a teacher's values of a step can be those of a language model that reads the text.

A teacher that was restarted with broken weights, or an engine that lost its input, still answers in time and in shape.
Nothing is missing then, and a run would train on noise. Four conditions find such answers:

- uniform: the distributions are nearly flat. Where entropies were requested: the entropy of more than half of the
  tokens is above 0.9 ln V. From log-probabilities alone: those of more than 90 % of the positions are within 10 % of
  -ln V. A teacher that merely dislikes the tokens spreads its values over many nats. Repeated completions of a prompt
  count once, because they rightly have repeated values.
- equal: more than 99 % of the rows have one value. A row is a position of a completion, repeated completions of a
  prompt counted once. Left out are rows of which the teacher is certain (log-probability about 0) if the student is
  fairly certain too (above 1/2), because a confident teacher gives 0.0 to nearly every token of a student that has
  learned from it. A row of which the teacher alone is certain counts, so that a teacher that answers 0.0 to everything
  is found. In completions that the student did not sample, every row of which the teacher is certain is left out: they
  may be the teacher's own.
- invalid: a value for a token that was scored, and is not masked, is NaN, +inf, or a log-probability above 0 by more
  than rounding. (-inf is probability 0, which some engines report.)
- gap: the 99th percentile of |log pi_theta - log pi_T| is above three times its median over the last 20 steps, and
  above 1 nat: below that, a multiple of nearly nothing is no fault. It needs 5 steps before, and the student's own
  completions.

The conditions on shares need 64 rows, the percentile needs 100 tokens. All figures are counts, so that those of several
processes are added up and each process comes to the same verdict. Numbers in, numbers out. N: scored tokens.
"""

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import median
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]

HIGH_ENTROPY, HIGH_ENTROPY_SHARE = 0.9, 0.5
FLAT_BAND, FLAT_SHARE = 0.1, 0.9
EQUAL_SHARE = 0.99
PERCENTILE, GAP_FACTOR, SMALLEST_GAP = 0.99, 3.0, 1.0
MIN_ROWS, MIN_TOKENS = 64, 100
WINDOW, MIN_HISTORY = 20, 5
"""Steps whose percentiles are remembered, and how many there must be."""

ROUNDING = 1e-3
"""Nats: values this near are equal, and a log-probability of up to this is 0."""

_CERTAIN, _FAIRLY_CERTAIN = -1e-3, math.log(0.5)
_BINS_PER_OCTAVE, _OCTAVES = 16, 20
_LOWEST = -200.0
_MOST_COMMON = 16
"""Values of a process that are counted for the others. A value of 99 % of all rows is among them on every process but
those with hardly a row."""


def valid_logprobs(values: NDArray[Any]) -> NDArray[np.bool_]:
    """bool: which values are log-probabilities. -inf is one, of probability 0."""
    return np.asarray(values <= ROUNDING)  # NaN compares as False


def valid_entropies(values: NDArray[Any]) -> NDArray[np.bool_]:
    """bool: which values are entropies: finite, and not below 0 by more than rounding."""
    return np.isfinite(values) & (values >= -ROUNDING)


@dataclass
class Figures:
    """The counts of one teacher's values in a step.

    tokens: log-probabilities, -inf included. invalid: values that no model gives. positions: tokens without repeated
    completions. flat: those with a log-probability near -ln V. entropies: known entropies. high: those above 0.9 ln V.
    rows: of the condition "equal". values: rows by value, in
    bins of `ROUNDING`. gaps: tokens by |log pi_theta - log pi_T|, in logarithmic bins. on_policy: whether the student
    sampled the completions.
    """

    on_policy: bool = True
    tokens: int = 0
    invalid: int = 0
    positions: int = 0
    flat: int = 0
    entropies: int = 0
    high: int = 0
    rows: int = 0
    values: Counter[int] = field(default_factory=Counter)
    gaps: Counter[int] = field(default_factory=Counter)

    @classmethod
    def of(
        cls,
        teacher_N: Floats,
        student_N: Floats,
        repeated_N: NDArray[np.bool_],
        entropy_N: Floats | None = None,
        *,
        vocab_size: int,
        invalid: int = 0,
        on_policy: bool = True,
    ) -> "Figures":
        """Count a step's values. Log-probabilities and entropies in nats, NaN where a value is missing, masked or
        invalid. repeated_N: positions of a completion that the prompt has before. invalid: how many values are.
        """
        known_N = ~np.isnan(teacher_N)
        teacher_N, student_N, repeated_N = teacher_N[known_N], student_N[known_N], repeated_N[known_N]
        uniform = math.log(max(2, vocab_size))
        row_N = ~repeated_N & ~((teacher_N > _CERTAIN) & ((student_N > _FAIRLY_CERTAIN) | (not on_policy)))
        figures = cls(
            on_policy=on_policy,
            tokens=len(teacher_N),
            invalid=invalid,
            positions=int((~repeated_N).sum()),
            flat=int((~repeated_N & (np.abs(teacher_N + uniform) < FLAT_BAND * uniform)).sum()),
            rows=int(row_N.sum()),
            values=_largest(np.bincount(_value_bins(teacher_N[row_N])), _MOST_COMMON),
            gaps=count_gaps(teacher_N - student_N),
        )
        if entropy_N is not None:
            entropy_N = entropy_N[np.isfinite(entropy_N)]
            figures.entropies = len(entropy_N)
            figures.high = int((entropy_N > HIGH_ENTROPY * uniform).sum())
        return figures

    @classmethod
    def joined(cls, parts: Iterable["Figures"]) -> "Figures":
        """The figures of several processes as one."""
        out = cls()
        for part in parts:
            out.on_policy = out.on_policy and part.on_policy
            for name in ("tokens", "invalid", "positions", "flat", "entropies", "high", "rows"):
                setattr(out, name, getattr(out, name) + getattr(part, name))
            out.values.update(part.values)
            out.gaps.update(part.gaps)
        return out

    def most_equal(self) -> tuple[float, float]:
        """(the most common value in nats, the share of the rows that have it), of two neighbouring bins, because equal
        values with rounding may lie on both sides of a bin's edge.
        """
        if not self.rows or not self.values:
            return 0.0, 0.0
        count, edge = max((self.values[value] + self.values[value + 1], value) for value in self.values)
        return -edge * ROUNDING, count / self.rows


def count_gaps(gap_N: Floats) -> Counter[int]:
    """The finite values of |log pi_theta - log pi_T|, nats, counted in logarithmic bins."""
    gap_N = np.abs(gap_N)
    return _largest(np.bincount(_gap_bins(gap_N[np.isfinite(gap_N)])), 2 * _BINS_PER_OCTAVE * _OCTAVES + 1)


def gap_percentile(gaps: Counter[int]) -> float | None:
    """The 99th percentile of counted gaps, nats, rounded up to a bin's edge (by less than 5 %); None if there are too
    few tokens.
    """
    total = gaps.total()
    if total < MIN_TOKENS:
        return None
    edges, counts = zip(*sorted(gaps.items()), strict=True)
    edge = edges[int(np.searchsorted(np.cumsum(counts), PERCENTILE * total))]
    return float(2.0 ** ((edge + 1) / _BINS_PER_OCTAVE - _OCTAVES))


@dataclass(frozen=True)
class Alarm:
    """A condition that a step meets. name: of the condition. text: with the figures, for the user."""

    name: str
    text: str


class TeacherSanity:
    """The conditions for one teacher, over the steps of a run. vocab_size: V, of the teacher."""

    def __init__(self, vocab_size: int) -> None:
        self.vocab_size = vocab_size
        self.percentiles: list[float] = []
        self.in_a_row = 0

    def observe(self, figures: Figures) -> list[Alarm]:
        """The alarms of a step. A step in which the teacher gave no value leaves everything as it was."""
        if not figures.tokens and not figures.invalid:
            return []
        alarms = [*self._uniform(figures), *self._equal(figures), *self._invalid(figures), *self._gap(figures)]
        self.in_a_row = self.in_a_row + 1 if alarms else 0
        return alarms

    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps, JSON values."""
        return {"percentiles": list(self.percentiles), "in_a_row": self.in_a_row}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on from `state`; from nothing, if it is empty."""
        self.percentiles = [float(value) for value in state.get("percentiles", [])][-WINDOW:]
        self.in_a_row = int(state.get("in_a_row", 0))

    def _uniform(self, figures: Figures) -> Sequence[Alarm]:
        uniform = math.log(max(2, self.vocab_size))
        if figures.entropies >= MIN_ROWS and figures.high > HIGH_ENTROPY_SHARE * figures.entropies:
            share = figures.high / figures.entropies
            text = (
                f"the entropy of {share:.0%} of {figures.entropies:,} tokens is above {HIGH_ENTROPY * uniform:.3g} nats"
            )
            return [Alarm("uniform", f"{text}, which is {HIGH_ENTROPY} ln V for V = {self.vocab_size:,}")]
        if figures.positions >= MIN_ROWS and figures.flat > FLAT_SHARE * figures.positions:
            share = figures.flat / figures.positions
            text = (
                f"the log-probabilities of {share:.0%} of {figures.positions:,} positions are within {FLAT_BAND:.0%} of"
            )
            return [Alarm("uniform", f"{text} -ln V = {-uniform:.3g} nats, as if every id were equally likely")]
        return []

    def _equal(self, figures: Figures) -> Sequence[Alarm]:
        value, share = figures.most_equal()
        if figures.rows < MIN_ROWS or share <= EQUAL_SHARE:
            return []
        text = f"{share:.1%} of {figures.rows:,} positions have the same log-probability, {value:.4g} nats"
        return [Alarm("equal", text)]

    def _invalid(self, figures: Figures) -> Sequence[Alarm]:
        if not figures.invalid:
            return []
        text = (
            f"{figures.invalid:,} values are NaN, infinite, or log-probabilities above 0 ({figures.tokens:,} are not)"
        )
        return [Alarm("invalid", f"{text}; they are masked")]

    def _gap(self, figures: Figures) -> Sequence[Alarm]:
        percentile = gap_percentile(figures.gaps) if figures.on_policy else None
        if percentile is None:
            return []
        usual = median(self.percentiles) if len(self.percentiles) >= MIN_HISTORY else math.inf
        steps = len(self.percentiles)
        self.percentiles = [*self.percentiles, percentile][-WINDOW:]
        if percentile <= max(GAP_FACTOR * usual, SMALLEST_GAP):
            return []
        text = f"the 99th percentile of |student - teacher| is {percentile:.3g} nats, and {usual:.3g} is its median"
        return [Alarm("gap", f"{text} over the last {steps} steps")]


def _value_bins(values_N: Floats) -> NDArray[np.int64]:
    """Bins of `ROUNDING` from 0 downwards, the last of them for all below -200 nats, -inf among them."""
    return np.asarray(np.clip(values_N.astype(np.float64), _LOWEST, 0.0) / -ROUNDING).astype(np.int64)


def _gap_bins(gap_N: Floats) -> NDArray[np.int64]:
    """Logarithmic bins, 16 for each doubling, from 2^-20 to 2^20 nats."""
    gap_N = np.clip(gap_N.astype(np.float64), 2.0**-_OCTAVES, 2.0**_OCTAVES)
    return np.floor(_BINS_PER_OCTAVE * (np.log2(gap_N) + _OCTAVES)).astype(np.int64)


def _largest(counts: NDArray[np.int64], most: int) -> Counter[int]:
    """The `most` largest counts above 0, by index."""
    indices = np.argsort(-counts, kind="stable")[:most]
    return Counter({int(index): int(counts[index]) for index in indices if counts[index]})
