"""The prompts of a run, within `data.max_prompt_tokens`."""

from collections.abc import Sequence
from functools import partial

from vold_trainer.config import DataConfig
from vold_trainer.data import Example
from vold_trainer.errors import UsageError
from vold_trainer.processes.ranks import Ranks
from vold_trainer.student.lengths import measure, whole_lengths
from vold_trainer.student.models import Student
from vold_trainer.terminal import console


def limited_prompts(config: DataConfig, student: Student, examples: Sequence[Example], ranks: Ranks) -> list[Example]:
    """The examples whose prompts have at most `max_prompt_tokens` tokens; all of them without such a limit.

    Each process measures its share. A row that cannot be read is said to be so by its step.

    Raises UsageError that names the first of the others if they are errors, or if there are no more.
    """
    limit = config.max_prompt_tokens
    if limit is None:
        return list(examples)
    own = [examples[index] for index in ranks.share(len(examples))]
    measured = ranks.run_on_all(lambda: measure(partial(whole_lengths, student), own, lambda fault: None))
    lengths = [length for part in ranks.gather(measured) for length in part]
    kept = ranks.run_on_all(lambda: _within(limit, config.too_long == "drop", examples, lengths))
    console.print(
        f"{len(kept):,} prompts; dropped {len(examples) - len(kept):,} with more than data.max_prompt_tokens {limit:,}",
        highlight=False,
        soft_wrap=True,
    )
    return kept


def _within(limit: int, drop: bool, examples: Sequence[Example], lengths: Sequence[int]) -> list[Example]:
    kept = [example for example, length in zip(examples, lengths, strict=True) if length <= limit]
    count = len(examples) - len(kept)
    if count and not drop:
        index = next(index for index, length in enumerate(lengths) if length > limit)
        more = f" So have {count - 1:,} more of {len(examples):,} rows." if count > 1 else ""
        raise UsageError(
            f"{examples[index].label}: its prompt has {lengths[index]:,} tokens, more than data.max_prompt_tokens "
            f"{limit:,}.{more} Raise it, or leave such rows out with data.too_long=drop"
        )
    if not kept:
        raise UsageError(f"data.max_prompt_tokens is {limit:,}, and each of the {count:,} prompts has more: raise it")
    return kept
