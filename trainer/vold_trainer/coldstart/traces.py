"""Cold-start traces: the teacher generates completions for the prompts, and the verifier may filter them.

A row's completions follow from the run's seed and the row alone, whichever rows share its request.
"""

import hashlib
import json
import logging
from collections import Counter
from collections.abc import Sequence
from contextlib import AsyncExitStack, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

from vold_client import AsyncTeacherClient, AsyncVerifierClient, Generation

from vold_trainer.coldstart.teacher_tokens import record_tokens
from vold_trainer.config import TracesConfig
from vold_trainer.data import Example
from vold_trainer.data.faults import RowError, RowFault
from vold_trainer.data.keys import row_keys
from vold_trainer.data.traces import prompt_fields
from vold_trainer.errors import RunError, UsageError
from vold_trainer.lock import holds_out
from vold_trainer.scoring.twins import check_twins, flatten_content, teacher_messages
from vold_trainer.sentences import Sentences
from vold_trainer.services.items import verifier_item
from vold_trainer.services.local import teacher_client, verifier_client
from vold_trainer.services.opening import Opened, opening
from vold_trainer.sources.check import check_files
from vold_trainer.tasks import ClientTasks
from vold_trainer.terminal import ProgressLine, progress

log = logging.getLogger("vold.traces")


@dataclass(frozen=True)
class TracesSummary:
    """requested: completions requested of the teacher. written: traces written. dropped: how many others, by reason.
    sentences: what teacher and verifier say about these.
    """

    requested: int
    written: int
    dropped: dict[str, int]
    sentences: Sentences = field(default_factory=Sentences)

    def describe_dropped(self) -> str:
        """How many traces were dropped by reason, and why in the services' own words. Plain text."""
        return self.sentences.describe(self.dropped) or "none"


@holds_out("traces")
def run_traces(config: TracesConfig, *, opened: Opened | None = None) -> TracesSummary:
    """Write `config.out`, one JSON object per trace.

    opened: the rows and the services, if this process has opened them. Raises RunError if there is no trace to write.
    """
    if config.keep == "correct" and config.verifier is None:
        raise UsageError("keep is 'correct' but there is no verifier: set verifier.url, or keep=all")
    check_files(config)
    config.out.parent.mkdir(parents=True, exist_ok=True)
    partial = config.out.with_name(config.out.name + ".partial")
    with nullcontext(opened) if opened is not None else opening(config) as both:
        services, (examples,) = both.services, both.sets
        check_twins(examples)
        tasks = ClientTasks()

        async def generate_traces(live: ProgressLine, stream: IO[str]) -> TracesSummary:
            async with AsyncExitStack() as stack:
                teacher = await stack.enter_async_context(teacher_client(config.teacher, services))
                verifier = None
                if config.used_verifier is not None:
                    verifier = await stack.enter_async_context(verifier_client(config.used_verifier, services))
                return await _write_traces(config, examples, teacher, verifier, stream, live)

        try:
            with partial.open("w") as stream, progress("traces from the teacher", len(examples)) as live:
                summary = tasks.run(generate_traces(live, stream))
        finally:
            tasks.close()
    if not summary.written:
        raise RunError(
            f"not one of {summary.requested} traces was kept ({summary.describe_dropped()}): check teacher and verifier"
        )
    partial.replace(config.out)
    return summary


async def _write_traces(
    config: TracesConfig,
    examples: Sequence[Example],
    teacher: AsyncTeacherClient,
    verifier: AsyncVerifierClient | None,
    stream: IO[str],
    live: ProgressLine,
) -> TracesSummary:
    dropped, sentences = Counter[str](), Sentences()
    written = 0
    info = await teacher.info()
    seeds = [_seed(config.seed, key) for key in row_keys(examples)]
    seeded = not config.temperature or "prompt_seed" in info.capabilities
    if not seeded:
        log.warning("%s ignores seeds: the traces will differ from run to run", info.identity.model)
    for start in range(0, len(examples), config.request):
        part = examples[start : start + config.request]
        generations = [
            generation
            async for generation in teacher.generate(
                [flatten_content(teacher_messages(example, config.teacher.system)) for example in part],
                n=config.samples,
                max_tokens=config.max_tokens,
                temperature=config.temperature,
                top_p=config.top_p,
                seeds=seeds[start : start + config.request] if seeded else None,
                chat_template_kwargs=config.teacher.chat_template_kwargs or None,
            )
        ]
        generations.sort(key=lambda generation: (generation.prompt, generation.index))
        finished = []
        for generation in generations:
            if generation.error is not None:
                reason = f"teacher: {type(generation.error).__name__}"
                dropped[reason] += 1
                sentences.add(reason, part[generation.prompt].id, generation.error)
            elif generation.finish_reason != "stop":
                dropped["not finished"] += 1
            elif not generation.text.strip():
                dropped["empty"] += 1
            else:
                finished.append(generation)
        accepted = finished
        if verifier is not None:
            accepted = await _filter_correct(config, part, finished, verifier, dropped, sentences)
        for generation in accepted:
            example = part[generation.prompt]
            try:
                row = _trace_row(example, generation, config.out)
            except UsageError as error:  # of an image that is written beside the traces
                fault = RowFault.of(example, error)
                if config.data.skip_broken is False:
                    raise RowError(fault) from error
                dropped[f"row: {fault.kind}"] += 1
                log.warning("no trace of a row at fault: %s", fault)
                continue
            stream.write(json.dumps(row) + "\n")
            written += 1
        live.update(start + len(part), written=str(written), dropped=str(dropped.total()))
    if written:
        await record_tokens(config.out, teacher)
    return TracesSummary(len(examples) * config.samples, written, dict(dropped), sentences)


async def _filter_correct(
    config: TracesConfig,
    examples: Sequence[Example],
    generations: Sequence[Generation],
    verifier: AsyncVerifierClient,
    dropped: Counter[str],
    sentences: Sentences,
) -> list[Generation]:
    """The completions that the verifier accepts; the others are counted in `dropped`, with the verifier's sentences."""
    assert config.verifier is not None
    items = [
        verifier_item(examples[generation.prompt], generation.text, config.verifier.name, config.verifier.parameters)
        for generation in generations
    ]
    verdicts = await verifier.verify(items) if items else []
    accepted = []
    for generation, verdict in zip(generations, verdicts, strict=True):
        if verdict.error is not None:
            reason = f"verifier: {type(verdict.error).__name__}"
            dropped[reason] += 1
            sentences.add(reason, examples[generation.prompt].id, verdict.error)
        elif not verdict.correct:
            dropped["wrong"] += 1
        else:
            accepted.append(generation)
    return accepted


def _seed(seed: int, key: str) -> int:
    """The seed of the row with this key, 64 bits: a hash, so that rows and runs have seeds of their own."""
    return int.from_bytes(hashlib.blake2b(f"{seed}:{key}".encode(), digest_size=8).digest(), "big")


def _trace_row(example: Example, generation: Generation, out: Path) -> dict[str, object]:
    return {
        "id": f"{example.id}-{generation.index}",
        **prompt_fields(example, out.parent, out.parent / f"{out.stem}-images"),
        "completion": generation.text,
        "completion_ids": [int(token) for token in generation.ids],
        "reference": example.reference,
        "category": example.category,
    }
