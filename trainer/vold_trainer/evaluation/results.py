"""The result of one test set: verified answers in, metrics out."""

import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from vold_client import Verdict

from vold_trainer.adapters import Metrics, Outcome
from vold_trainer.config import SamplingConfig
from vold_trainer.data import Example
from vold_trainer.evaluation.answers import Answer
from vold_trainer.evaluation.metrics import bootstrap, maj_at_k, mean, pass_at_k, wilson
from vold_trainer.sentences import Sentences

RIGHT = "\0right"
"""The vote of a correct completion in maj@k, so that different spellings of the correct answer are one vote."""

Aggregate = Callable[[Sequence[Outcome]], Metrics]


@dataclass(frozen=True)
class VerifiedExample:
    """A problem with its answers and their verdicts. greedy: None if the evaluation has no greedy answers."""

    example: Example
    greedy: tuple[Answer, Verdict] | None
    sampled: tuple[tuple[Answer, Verdict], ...] = ()

    def answers(self) -> Iterator[tuple[Answer, Verdict]]:
        if self.greedy is not None:
            yield self.greedy
        yield from self.sampled


@dataclass(frozen=True)
class SetResult:
    """accuracy: of the n greedy answers with a verdict, NaN if n is 0. interval: Wilson's, 95 %.

    errors: answers without a verdict, sampled answers included; reasons: how many for each reason, with the verifier's
    own sentences. mean_length: tokens. truncated: share of answers that
    reached max_tokens. Both are of the greedy answers, or of the sampled answers if there are no greedy ones. by_facet:
    accuracy by the facets that an adapter defines. aggregate: the benchmark's own metrics. sampled: see
    `summarise_sampled`.
    """

    accuracy: float
    n: int
    interval: tuple[float, float]
    by_category: dict[str, dict[str, Any]]
    errors: int
    mean_length: float
    truncated: float
    problems: int = 0
    by_facet: dict[str, dict[str, dict[str, Any]]] = field(default_factory=dict)
    aggregate: dict[str, dict[str, Any]] = field(default_factory=dict)
    sampled: dict[str, Any] | None = None
    reasons: list[str] = field(default_factory=list)


def summarise(
    problems: Sequence[VerifiedExample], sampling: SamplingConfig, *, aggregate: Aggregate | None = None, seed: int = 0
) -> SetResult:
    """The result of one set. seed: of the bootstrap."""
    verdicts = [_correct(problem.greedy) for problem in problems]
    right = [correct for correct in verdicts if correct is not None]
    pairs = [pair for problem in problems for pair in problem.answers()]
    measured = [problem.greedy[0] for problem in problems if problem.greedy] or [answer for answer, _ in pairs]
    benchmark_metrics = {}
    if aggregate is not None and any(problem.greedy for problem in problems):
        outcomes = [Outcome(problem.example, correct) for problem, correct in zip(problems, verdicts, strict=True)]
        benchmark_metrics = {name: _metric(values, seed) for name, values in aggregate(outcomes).items()}
    return SetResult(
        accuracy=sum(right) / len(right) if right else math.nan,
        n=len(right),
        interval=wilson(sum(right), len(right)),
        by_category=_accuracies(problems, verdicts, lambda example: [example.category]),
        errors=sum(verdict.error is not None for _, verdict in pairs),
        mean_length=sum(answer.tokens for answer in measured) / max(1, len(measured)),
        truncated=sum(answer.truncated for answer in measured) / max(1, len(measured)),
        problems=len(problems),
        by_facet={
            facet: _accuracies(problems, verdicts, lambda example, facet=facet: _facet_values(example, facet))  # type: ignore[misc]
            for facet in sorted({name for problem in problems for name in problem.example.meta.get("facets", {})})
        },
        aggregate=benchmark_metrics,
        sampled=summarise_sampled(problems, sampling, aggregate=aggregate, seed=seed) if sampling.n else None,
        reasons=error_reasons(problems),
    )


def error_reasons(problems: Sequence[VerifiedExample]) -> list[str]:
    """For each class of error: how many answers have no verdict because of it, and what the verifier says."""
    counts, sentences = Counter[str](), Sentences()
    for problem in problems:
        for _, verdict in problem.answers():
            if verdict.error is not None:
                reason = type(verdict.error).__name__
                counts[reason] += 1
                sentences.add(reason, problem.example.id, verdict.error)
    return sentences.lines(counts)


def summarise_sampled(
    problems: Sequence[VerifiedExample], sampling: SamplingConfig, *, aggregate: Aggregate | None = None, seed: int = 0
) -> dict[str, Any]:
    """mean@n, pass@k and maj@k as {"value", "interval", "n"}, where n is the number of problems in the value.

    The mean is over the verdicts that exist. A problem with fewer than k verdicts is left out of pass@k and maj@k, not
    counted as unsolved. Intervals are bootstrapped over problems.
    """
    summary: dict[str, Any] = {
        "n": sampling.n,
        "temperature": sampling.temperature,
        "top_p": sampling.top_p,
        "errors": sum(verdict.error is not None for problem in problems for _, verdict in problem.sampled),
        **_sampled_metrics(problems, sampling, seed),
    }
    categories = sorted({problem.example.category for problem in problems} - {""})
    summary["by_category"] = {
        name: _sampled_metrics([p for p in problems if p.example.category == name], sampling, seed)
        for name in categories
    }
    if aggregate is not None:
        summary["aggregate"] = _sampled_aggregate(problems, sampling.n, aggregate)
    answers = [answer for problem in problems for answer, _ in problem.sampled]
    summary["mean_length"] = sum(answer.tokens for answer in answers) / max(1, len(answers))
    summary["truncated"] = sum(answer.truncated for answer in answers) / max(1, len(answers))
    return summary


def _sampled_metrics(problems: Sequence[VerifiedExample], sampling: SamplingConfig, seed: int) -> dict[str, Any]:
    verdicts_of = [[verdict for _, verdict in problem.sampled if verdict.error is None] for problem in problems]
    correct = [sum(bool(verdict.correct) for verdict in verdicts) for verdicts in verdicts_of]
    values = {
        f"mean@{sampling.n}": [c / len(verdicts) for c, verdicts in zip(correct, verdicts_of, strict=True) if verdicts]
    }
    for k in sampling.ks:
        enough = [(c, verdicts) for c, verdicts in zip(correct, verdicts_of, strict=True) if len(verdicts) >= k]
        values[f"pass@{k}"] = [pass_at_k(len(verdicts), c, k) for c, verdicts in enough]
        if k > 2:  # a majority of one or two answers says no more than the mean
            values[f"maj@{k}"] = [maj_at_k([_vote(v) for v in verdicts], RIGHT, k) for _, verdicts in enough]
    return {name: _metric(numbers, seed) for name, numbers in values.items()}


def _sampled_aggregate(problems: Sequence[VerifiedExample], n: int, aggregate: Aggregate) -> dict[str, float]:
    """The benchmark's own metrics, computed for each of the n passes over the set and averaged over the passes."""
    passes: dict[str, list[float]] = {}
    for sample in range(n):
        pairs = [problem.sampled[sample] if problem.sampled else None for problem in problems]
        outcomes = [Outcome(problem.example, _correct(pair)) for problem, pair in zip(problems, pairs, strict=True)]
        for name, values in aggregate(outcomes).items():
            if values:
                passes.setdefault(name, []).append(mean(values))
    return {name: mean(values) for name, values in passes.items()}


def _metric(values: Sequence[float], seed: int) -> dict[str, Any]:
    return {"value": mean(values), "interval": bootstrap(values, seed=seed), "n": len(values)}


def _accuracies(
    problems: Sequence[VerifiedExample], verdicts: Sequence[bool | None], names: Callable[[Example], Sequence[str]]
) -> dict[str, dict[str, Any]]:
    """Accuracy of the answers with a verdict by name; the name "" is left out."""
    groups: dict[str, list[bool]] = {}
    for problem, correct in zip(problems, verdicts, strict=True):
        for name in names(problem.example) if correct is not None else ():
            groups.setdefault(name, []).append(bool(correct))
    groups.pop("", None)
    return {
        name: {"accuracy": sum(right) / len(right), "n": len(right), "interval": wilson(sum(right), len(right))}
        for name, right in sorted(groups.items())
    }


def _facet_values(example: Example, facet: str) -> list[str]:
    facets: Mapping[str, Any] = example.meta.get("facets", {})
    value = facets.get(facet, [])
    return [value] if isinstance(value, str) else [str(item) for item in value]


def _correct(pair: tuple[Answer, Verdict] | None) -> bool | None:
    return None if pair is None or pair[1].error is not None else bool(pair[1].correct)


def _vote(verdict: Verdict) -> str | None:
    if verdict.correct:
        return RIGHT
    return None if not verdict.extracted else " ".join(verdict.extracted.casefold().split())
