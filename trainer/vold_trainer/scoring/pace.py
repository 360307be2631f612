"""Quotas below a run's pace, told before the first step: what a step sends at most, and the seconds that it then takes.

A tenant of a service may have a number of tokens a minute. A run that sends more is not refused for good, but it is as
slow as its quota.
"""

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass

from rich.markup import escape
from vold_client import AsyncTeacherClient, AsyncVerifierClient, Quota, VoldError

from vold_trainer.config import RolloutConfig
from vold_trainer.data import Example
from vold_trainer.scoring.scorer import Scorer
from vold_trainer.scoring.twins import TeacherPrompts
from vold_trainer.terminal import console

MEASURED_PROMPTS = 64
CHARACTERS_PER_TOKEN = 4
"""As the verifier counts, which has no tokenizer."""


@dataclass(frozen=True)
class StepTokens:
    """The tokens that a step sends to a service at most. prompts: how many times a prompt is sent. prompt: its tokens,
    as a mean.
    """

    completions: int
    max_tokens: int
    prompts: int
    prompt: float

    @property
    def total(self) -> float:
        return self.completions * self.max_tokens + self.prompts * self.prompt


def teacher_tokens(
    prompts: TeacherPrompts, rollout: RolloutConfig, examples: Sequence[Example], share: float = 1.0
) -> StepTokens:
    """What a step sends to a teacher that scores `share` of the rollouts, those of `examples` among them. A prompt is
    sent once with the completions of its group.
    """
    lengths = []
    for example in _sample(examples):
        with contextlib.suppress(Exception):  # a row that the template refuses is told elsewhere
            lengths.append(prompts.length(example))
    count = round(share * rollout.prompts)
    return StepTokens(count * rollout.group, rollout.max_tokens, count, sum(lengths) / max(1, len(lengths)))


def verifier_tokens(rollout: RolloutConfig, examples: Sequence[Example]) -> StepTokens:
    """What a step sends to the verifier: prompt and reference with each completion."""
    lengths = [len(example.prompt_text) + len(example.reference) for example in _sample(examples)]
    count = rollout.prompts * rollout.group
    mean = sum(lengths) / max(1, len(lengths)) / CHARACTERS_PER_TOKEN
    return StepTokens(count, rollout.max_tokens, count, mean)


def describe_slow_quota(key: str, quota: Quota, replicas: int, tokens: StepTokens) -> str | None:
    """Say how slow the quota makes a step; None if a step fits into a minute of it. replicas: each has the quota."""
    if quota.tokens_per_minute is None:
        return None
    limit = quota.tokens_per_minute * replicas
    if tokens.total <= limit:
        return None
    return (
        f"{key}: the tenant {quota.tenant!r} may send {limit:,} tokens a minute, and a step sends up to "
        f"{tokens.total:,.0f}: {tokens.completions:,} completions of up to {tokens.max_tokens:,} tokens, and "
        f"{tokens.prompts:,} prompts of about {tokens.prompt:,.0f}. A step then takes {60 * tokens.total / limit:,.0f} "
        "s or longer. Ask the service's operator for more tokens_per_minute, or lower rollout.prompts, rollout.group "
        "or rollout.max_tokens"
    )


def warn_of_slow_quotas(scorer: Scorer, rollout: RolloutConfig, examples: Sequence[Example]) -> None:
    """Print a warning for each service whose quota is below what a step may send. To be called after the handshake.

    A service that does not tell its quotas has none, or is of an earlier version.
    """
    for name, teacher in scorer.teachers.items():
        own = [example for example in examples if scorer.route(example) == name]
        tokens = teacher_tokens(scorer.prompts[name], rollout, own, len(own) / max(1, len(examples)))
        _warn(scorer, teacher.key, teacher.client, tokens)
    if scorer.verifier is not None:
        _warn(scorer, "verifier", scorer.verifier, verifier_tokens(rollout, examples))


def _warn(scorer: Scorer, key: str, client: AsyncTeacherClient | AsyncVerifierClient, tokens: StepTokens) -> None:
    try:
        quota = scorer.tasks.run(client.quota())
    except VoldError:
        return
    if text := describe_slow_quota(key, quota, len(client.urls), tokens):
        console.print(f"[yellow]{escape(text)}", highlight=False, soft_wrap=True)


def _sample(examples: Sequence[Example]) -> Sequence[Example]:
    """At most MEASURED_PROMPTS examples from all parts of the data."""
    return examples[:: max(1, -(-len(examples) // MEASURED_PROMPTS))]
