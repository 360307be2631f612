"""The tokens of a rollout, coloured by teacher-minus-student log-probability.

The colour scale diverges around 0 and is binned, so that each token needs one CSS class and the theme sets the colours:
blue if the token is more likely under the teacher than under the student, orange if it is less likely. A token without
a score has a hatched class, because a missing score is not a difference of 0.
"""

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass

from vold_trainer.report.formats import logprob, visible
from vold_trainer.report.read import Rollout

EDGES = (0.1, 0.5, 1.0, 2.0, 4.0)
"""Bounds of |gap| in nats between one shade and the next."""

MASKED = "masked"


@dataclass(frozen=True)
class TokenView:
    """A token on the page. css: the class of its shade. title: both log-probabilities as text."""

    text: str
    css: str
    title: str


@dataclass(frozen=True)
class Shade:
    """An entry of the legend."""

    css: str
    label: str


def shade_of(gap: float | None) -> str:
    """The CSS class of a gap in nats: "g-5" (teacher far lower) to "g5" (far higher), "g0" within 0.1, or MASKED."""
    if gap is None:
        return MASKED
    level = bisect_left(EDGES, abs(gap))
    return f"g-{level}" if gap < 0 < level else f"g{level}"


def legend() -> list[Shade]:
    """The shades from the lowest to the highest gap, labelled with their inner bound; then the masked shade."""
    lower = [Shade(f"g-{level}", f"−{EDGES[level - 1]:g}") for level in range(len(EDGES), 0, -1)]
    higher = [Shade(f"g{level}", f"+{EDGES[level - 1]:g}") for level in range(1, len(EDGES) + 1)]
    return [*lower, Shade("g0", "0"), *higher, Shade(MASKED, "no score")]


def view_tokens(
    rollout: Rollout, *, limit: int = 1200, scored: bool = True
) -> tuple[list[TokenView], int, list[TokenView]]:
    """(first tokens, how many are left out, last tokens). With at most `limit` tokens, all are first tokens.

    scored: whether the run has a teacher; without a teacher no token counts as missing its score.
    Of a long completion three quarters of the limit are from its start and a quarter from its end, where the answer is.
    """
    columns = (rollout.tokens, rollout.student_logprobs, rollout.teacher_logprobs)
    views: Sequence[TokenView] = [_view(*item, scored) for item in zip(*columns, strict=True)]
    if len(views) <= limit:
        return list(views), 0, []
    head, tail = limit - limit // 4, limit // 4
    return list(views[:head]), len(views) - limit, list(views[-tail:])


def _view(token: str, student: float | None, teacher: float | None, scored: bool) -> TokenView:
    text = visible(token).replace("\n", "⏎\n").replace("\t", "⇥\t") or "∅"
    if not scored:
        return TokenView(text, "plain", f"student {logprob(student)}")
    gap = None if student is None or teacher is None else teacher - student
    values = f"student {logprob(student)} · teacher {logprob(teacher)}"
    title = f"{values} · no score, masked" if gap is None else f"{values} · difference {logprob(gap)}"
    return TokenView(text, shade_of(gap), title)
