"""The samples of a run of `vold traces`: which are requested next, and what becomes of their answers."""

import json
import logging
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
from vold_client import InvalidArgument, Verdict, VoldError
from vold_client.types import Identity

from vold_trainer.coldstart.answers import Answer, AnswerSource
from vold_trainer.coldstart.journal import ACCEPTED, ANSWERED, DROPPED, MISSING, Entry, Journal
from vold_trainer.coldstart.names import RowNames
from vold_trainer.coldstart.verdicts import Verdicts
from vold_trainer.coldstart.window import Item, Window
from vold_trainer.config import TracesConfig
from vold_trainer.data import Example
from vold_trainer.data.faults import RowError, RowFault
from vold_trainer.data.traces import prompt_fields
from vold_trainer.errors import RunError, UsageError
from vold_trainer.scoring.twins import flatten_content, teacher_messages
from vold_trainer.sentences import Sentences, sentence

log = logging.getLogger("vold.traces")

MAX_FIRST_FAILURES = 64
"""If the teacher refuses so many prompts and answers none, it will not answer the others either."""


class TraceMaker:
    """The worker of a Window. teacher: who has to answer. seeded: whether the teacher takes seeds.

    Set `window`, and `verdicts` if there is a verifier, before the window runs.
    """

    window: Window
    verdicts: Verdicts | None = None

    def __init__(
        self,
        config: TracesConfig,
        examples: Sequence[Example],
        names: RowNames,
        journal: Journal,
        *,
        teacher: Identity,
        seeded: bool,
    ) -> None:
        self.config = config
        self.examples = examples
        self.names = names
        self.journal = journal
        self.teacher = teacher
        self.seeded = seeded
        self.dropped = Counter[str]()
        self.sentences = Sentences()
        self.accepted = 0
        self.generated = 0
        self.found = 0
        self._place = 0
        # The first sample of a row that was accepted, if those after it are not needed.
        self._first_R = np.full(len(examples), config.samples, np.int32)
        self._unneeded = 0
        self._answered = False
        self._said_identity = False

    @property
    def settled(self) -> int:
        """Samples of which the outcome is known, or not needed any more."""
        return self.accepted + self.dropped.total() + self._unneeded

    def read(self, entries: Iterable[Entry]) -> None:
        """Take what the journal holds already."""
        for entry in entries:
            self._count(entry)
        self.found = int(np.count_nonzero(self.journal.state_RS))
        self._answered = bool((self.journal.tokens_RS != 0).any())

    def next_item(self) -> Item | None:
        if self.verdicts is not None and not self.verdicts.has_room:
            return None
        while not self.is_done():
            row, sample = divmod(self._place, self.config.samples)
            self._place += 1
            if self.is_wanted((row, sample)):
                return row, sample
        return None

    def is_done(self) -> bool:
        return self._place >= len(self.examples) * self.config.samples

    def is_wanted(self, item: Item) -> bool:
        row, sample = item
        return bool(self.journal.state_RS[item] == MISSING and sample <= self._first_R[row])

    def needs_verdict(self, item: Item) -> bool:
        """Whether the answer of this sample waits for a verdict that matters."""
        row, sample = item
        return bool(self.journal.state_RS[item] == ANSWERED and sample <= self._first_R[row])

    async def request(self, item: Item, source: AnswerSource) -> None:
        row, sample = item
        example = self.examples[row]
        messages = flatten_content(teacher_messages(example, self.config.teacher.system))
        name = self.names.name(row, example)
        try:
            answer = await source.answer(messages, self.names.seed_of(name, sample) if self.seeded else None)
        except InvalidArgument as error:
            self._drop(item, example, f"teacher: {type(error).__name__}", error)
            if self.dropped.total() >= MAX_FIRST_FAILURES and not self._answered:
                raise RunError(
                    f"the teacher answers none of the prompts: {self.sentences.describe(self.dropped)}"
                ) from error
            return
        self._answered = True
        self._check_identity(answer.identity, source.url)
        self.generated += answer.tokens or 0
        self._take(item, example, name, answer)

    async def submit_answers(self) -> None:
        """Give the verifier the answers of the journal that wait for a verdict."""
        if self.verdicts is None:
            return
        for row, sample in np.argwhere(self.journal.state_RS == ANSWERED).tolist():
            if self.needs_verdict((row, sample)):
                await self.verdicts.wait_for_room()
                completion = str(self.journal.trace(row, sample)["completion"])
                self.verdicts.submit((row, sample), self.examples[row], completion)

    def on_verdict(self, item: Item, example: Example, verdict: Verdict) -> None:
        """Record what the verifier says of an answer."""
        if not self.needs_verdict(item):
            return
        if verdict.error is not None:
            self._drop(item, example, f"verifier: {type(verdict.error).__name__}", verdict.error)
        elif not verdict.correct:
            self._drop(item, example, "wrong")
        else:
            self._record(Entry(*item, ACCEPTED))
            for later in range(item[1] + 1, self.config.samples if self.config.keep == "first-correct" else 0):
                self.window.cancel((item[0], later))

    def _take(self, item: Item, example: Example, name: str, answer: Answer) -> None:
        """Record an answer: dropped, accepted, or waiting for its verdict."""
        if not self.is_wanted(item):
            return
        if answer.finish_reason != "stop":
            self._drop(item, example, "not finished")
        elif not answer.text.strip():
            self._drop(item, example, "empty")
        elif self._is_too_long(answer):
            self._drop(item, example, "too long")
        elif (trace := self._trace(example, name, item, answer)) is None:
            return
        else:
            state = ACCEPTED if self.verdicts is None else ANSWERED
            tokens = -len(answer.text) if answer.tokens is None else answer.tokens
            self._record(Entry(*item, state, tokens=tokens, trace=trace))
            if self.verdicts is not None:
                self.verdicts.submit(item, example, answer.text)

    def _trace(self, example: Example, name: str, item: Item, answer: Answer) -> bytes | None:
        """The trace as JSON; None if the row is at fault, which is recorded. Raises RowError if that stops the run."""
        try:
            fields = _prompt(example, self.config.out)
        except UsageError as error:  # of an image that is written beside the traces
            fault = RowFault.of(example, error)
            if self.config.data.skip_broken is False:
                raise RowError(fault) from error
            log.warning("no trace of a row at fault: %s", fault)
            self._drop(item, example, f"row: {fault.kind}")
            return None
        ids = {} if answer.ids is None else {"completion_ids": answer.ids}
        trace = {"id": f"{name}-{item[1]}", **fields, "completion": answer.text, **ids}
        return json.dumps({**trace, "reference": example.reference, "category": example.category}).encode()

    def _is_too_long(self, answer: Answer) -> bool:
        limit = self.config.max_trace_tokens
        if limit is None:
            return False
        if answer.tokens is None or answer.prompt_tokens is None:
            raise UsageError(
                f"max_trace_tokens is {limit}, and {self.teacher.model} does not say how many tokens its answers have: "
                "leave it out"
            )
        return answer.tokens + answer.prompt_tokens > limit

    def _drop(self, item: Item, example: Example, reason: str, error: VoldError | None = None) -> None:
        self._record(Entry(*item, DROPPED, reason=reason, said="" if error is None else sentence(error)), example)

    def _record(self, entry: Entry, example: Example | None = None) -> None:
        self.journal.add(entry)
        self._count(entry, example)

    def _count(self, entry: Entry, example: Example | None = None) -> None:
        if entry.state == DROPPED:
            self.dropped[entry.reason] += 1
            if entry.said:
                self.sentences.add(entry.reason, (example or self.examples[entry.row]).id, entry.said)
        elif entry.state == ACCEPTED:
            self.accepted += 1
            if self.config.keep == "first-correct" and entry.sample < self._first_R[entry.row]:
                later = slice(entry.sample + 1, int(self._first_R[entry.row]))
                self._unneeded += int((self.journal.state_RS[entry.row, later] < ACCEPTED).sum())
                self._first_R[entry.row] = entry.sample

    def _check_identity(self, identity: Identity, url: str) -> None:
        """Raise RunError if another teacher answers than the one that the traces are of."""
        if fingerprints(identity) == fingerprints(self.teacher) or self._said_identity:
            return
        said = f"teacher {url} is now {identity.model} ({identity.weights_fingerprint}), and the traces so far are of "
        said += f"{self.teacher.model} ({self.teacher.weights_fingerprint})"
        if not self.config.teacher.allow_identity_change:
            raise RunError(f"{said}: serve that one again, or set teacher.allow_identity_change=true")
        self._said_identity = True
        log.warning(said)


def fingerprints(identity: Identity) -> dict[str, str]:
    """Who a teacher is: of an endpoint that says no more, its model."""
    if not identity.weights_fingerprint:
        return {"model": identity.model}
    return {"weights": identity.weights_fingerprint, "tokenizer": identity.tokenizer_fingerprint}


def _prompt(example: Example, out: Path) -> dict[str, object]:
    return prompt_fields(example, out.parent, out.parent / f"{out.stem}-images")
