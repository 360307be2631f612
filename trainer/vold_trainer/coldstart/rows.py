"""The traces of a run: encoded, within `max_tokens`, divided into those to learn and those that are held out."""

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np

from vold_trainer.config import SftConfig
from vold_trainer.data.traces import TraceRules
from vold_trainer.errors import UsageError
from vold_trainer.launch import is_local_main_process, machine_rank
from vold_trainer.processes.ranks import Ranks
from vold_trainer.student.encoded import EncodedTraces
from vold_trainer.student.encoded.cache import encoded_folder
from vold_trainer.student.models import Student
from vold_trainer.terminal import console


class RunTraces(NamedTuple):
    """learned: the traces of the steps. held_out: those that the validation loss is of; None if it is off."""

    learned: EncodedTraces
    held_out: EncodedTraces | None


def load_traces(config: SftConfig, student: Student, ranks: Ranks) -> RunTraces:
    """The traces that the config names. The main process of each machine encodes them, while the others wait.

    Raises UsageError that names file, line and field of a row at fault.
    """
    traces = _encoded(config.traces, TraceRules(config.columns, config.limit, prefix=""), config, student, ranks)
    learned, dropped = ranks.run_on_all(lambda: _within(traces, config))
    held_out: EncodedTraces | None = None
    if config.validation.share:
        learned, held_out = ranks.run_on_all(lambda: _divided(learned, config.validation.share))
    elif config.validation.file is not None:
        more = _encoded(config.validation.file, TraceRules(config.columns, prefix=""), config, student, ranks)
        held_out, also = ranks.run_on_all(lambda: _within(more, config))
        dropped += also
    console.print(_describe(learned, held_out, dropped, config.max_tokens), highlight=False, soft_wrap=True)
    return RunTraces(learned, held_out)


def _encoded(path: Path, rules: TraceRules, config: SftConfig, student: Student, ranks: Ranks) -> EncodedTraces:
    def encode() -> Path:
        return encoded_folder(
            path, student, rules, skip_broken=bool(config.skip_broken), cache=config.traces_cache
        ).resolve()

    made = ranks.run_on_all(_on_local_main(encode))
    folders = {machine: folder for machine, folder in ranks.gather((machine_rank(), made)) if folder is not None}
    return ranks.run_on_all(lambda: EncodedTraces(folders[machine_rank()], path))


def _on_local_main(work: Callable[[], Path]) -> Callable[[], Path | None]:
    return lambda: work() if is_local_main_process() else None


def _within(traces: EncodedTraces, config: SftConfig) -> tuple[EncodedTraces, int]:
    """(the traces of at most `max_tokens` tokens, the number of others). Raises UsageError if the others are errors."""
    if config.max_tokens is None:
        return traces, 0
    fits = traces.lengths.astype(np.int64) + traces.prompt_lengths <= config.max_tokens
    count = int((~fits).sum())
    if count and config.too_long == "error":
        index = int(np.argmin(fits))
        more = f" So are {count - 1:,} more of {len(traces):,} traces." if count > 1 else ""
        raise UsageError(
            f"{traces[index].example.label}: its prompt has {traces.prompt_lengths[index]:,} tokens, and with the "
            f"{traces.lengths[index]:,} of its completion that is more than max_tokens {config.max_tokens:,}.{more} "
            "Raise max_tokens, or leave such traces out with too_long=drop"
        )
    if count == len(traces):
        raise UsageError(
            f"max_tokens is {config.max_tokens:,}, and each of the {count:,} traces of {str(traces.path)!r} has more: "
            "raise it"
        )
    return (traces.select(fits), count) if count else (traces, 0)


def _divided(traces: EncodedTraces, share: float) -> tuple[EncodedTraces, EncodedTraces]:
    """(the traces to learn, those held out): a trace is held out by its key alone, whatever else is in the file."""
    held = np.fromiter((_place(key) < share for key in traces.keys), bool, len(traces))
    if held.all() or not held.any():
        what = "every" if held.all() else "none"
        raise UsageError(
            f"validation.share {share:g} holds out {what} of {len(traces):,} traces: change it, or give validation.file"
        )
    return traces.select(~held), traces.select(held)


def _place(key: str) -> float:
    """Where a key is in [0, 1): a hash, so that one share of the traces is part of every larger one."""
    return int.from_bytes(hashlib.blake2b(f"validation:{key}".encode(), digest_size=6).digest(), "big") / 2**48


def _describe(learned: EncodedTraces, held_out: EncodedTraces | None, dropped: int, max_tokens: int | None) -> str:
    lengths = learned.lengths.astype(np.int64) + learned.prompt_lengths
    text = (
        f"{len(learned):,} traces, {int(learned.lengths.sum(dtype=np.int64)):,} tokens to learn; with its prompt a "
        f"trace has {int(np.median(lengths)):,} in the median, {int(lengths.max()):,} at most"
    )
    if max_tokens is not None:
        text += f"; dropped {dropped:,} with more than max_tokens {max_tokens:,}"
    if held_out is not None:
        text += f"; the validation loss is of {len(held_out):,} others"
    return text
