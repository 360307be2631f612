"""Rollouts generated in this process, by a decoding loop over the forward pass of a transformers model.

Each prompt is computed once for all of its completions. Completions that have ended leave the batch and are returned at
once, so that they can be scored while the others are still being generated.

Shapes: P prompts, C completions decoded together, B completions still in the batch, T completion positions, K
candidates.
"""

from collections.abc import Iterator, Sequence
from dataclasses import fields
from functools import partial
from itertools import chain

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vold_trainer.data import Example
from vold_trainer.data.faults import OnFault, PromptTooLongError
from vold_trainer.errors import DivergedError
from vold_trainer.rollout.base import OnFinished, Rollout, Sampling
from vold_trainer.rollout.sampler import SampledTokens, Sampler, uniforms
from vold_trainer.rollout.stop import NO_STOP, Stop, TextStops
from vold_trainer.student.decoder import Decoder
from vold_trainer.student.models import Student
from vold_trainer.student.readable import for_readable

PIXELS_PER_TOKEN = 28 * 28
"""Image pixels per prompt token: an estimate, used only to sort prompts by length."""


def generate(
    student: Student,
    examples: Sequence[Example],
    *,
    group: int = 1,
    max_tokens: int,
    temperature: float = 1.0,
    top_p: float = 1.0,
    top_k: int = 0,
    min_p: float = 0.0,
    stop: Stop = NO_STOP,
    batch: int = 0,
    seed: int = 0,
    first_row: int = 0,
    logprobs: bool = False,
    candidates: int = 0,
    on_finished: OnFinished | None = None,
    on_fault: OnFault | None = None,
) -> list[Rollout]:
    """Generate `group` completions of each example, in order (example by example).

    batch: the number of sequences decoded together, 0 for all. The completion of a row depends on its prompt, `seed`
    and the row's number, counted from `first_row`. `batch` and the other rows change only the last digits of the
    logits. The other parameters are those of `Sampling` and `Engine.generate`.

    Raises RunError if the student's logits are not finite; RowError for an example at fault without `on_fault`.
    """
    sampling = Sampling(group, max_tokens, temperature, top_p, logprobs, candidates, top_k, min_p, stop)
    model = student.model
    was_training = model.training
    model.eval()
    try:
        finished: dict[int, Rollout] = {}
        for rows in _decoding_batches(student, examples, group, batch):
            for new in _decode(student, examples, rows, sampling, seed, first_row, on_fault):
                finished.update({rollout.row: rollout for rollout in new})
                if on_finished is not None:
                    on_finished(new)
    finally:
        model.train(was_training)
    return [finished[row] for row in sorted(finished)]


def _decoding_batches(student: Student, examples: Sequence[Example], group: int, batch: int) -> list[list[int]]:
    """Split the rows (prompt * G + completion) into batches that are decoded together, longest prompts first."""
    count = len(examples) * group
    if not batch or batch >= count:
        return [list(range(count))] if count else []

    def count_tokens(part: Sequence[Example]) -> list[int]:
        texts = student.text_ids(part)
        return [len(ids) + example.pixels // PIXELS_PER_TOKEN for ids, example in zip(texts, part, strict=True)]

    # An example at fault is said to be so when it is decoded.
    readable, counted = for_readable(count_tokens, examples, lambda index, fault: None)
    lengths = [0] * len(examples)
    for index, length in zip(readable, counted or (), strict=True):
        lengths[index] = length
    order = sorted(range(len(examples)), key=lambda index: (-lengths[index], index))
    rows = [[index * group + completion for completion in range(group)] for index in order]
    if group > batch:
        return [prompt_rows[start : start + batch] for prompt_rows in rows for start in range(0, group, batch)]
    prompts_per_batch = batch // group
    return [list(chain(*rows[start : start + prompts_per_batch])) for start in range(0, len(rows), prompts_per_batch)]


def _encode(student: Student, examples: Sequence[Example]) -> dict[str, Tensor]:
    """`Student.encode`. Raises PromptTooLongError if a prompt takes all positions of the student."""
    inputs = student.encode(examples)
    limit, longest = student.max_positions, int(inputs["attention_mask"].sum(-1).max())
    if limit is not None and longest >= limit:
        raise PromptTooLongError(
            f"its prompt has {longest} tokens, and the student {student.path!r} has {limit} positions for prompt and "
            "completion together"
        )
    return inputs


class _CompletionBuffer:
    """The sampled tokens of C completions, on the CPU. rows_C, examples_C, prompt_ids_C: as in `Rollout`."""

    def __init__(
        self,
        student: Student,
        sampling: Sampling,
        rows_C: Sequence[int],
        examples_C: Sequence[Example],
        prompt_ids_C: Sequence[tuple[int, ...]],
        vocab_size: int,
    ) -> None:
        self.tokenizer = student.tokenizer
        self.sampling = sampling
        self.rows_C = rows_C
        self.examples_C = examples_C
        self.prompt_ids_C = prompt_ids_C
        shape = (len(rows_C), sampling.max_tokens)
        self.ids_CT = np.zeros(shape, dtype=np.int64)
        self.logprobs_CT = np.zeros(shape, dtype=np.float32)
        self.candidates_CTK = np.zeros((*shape, min(sampling.candidates, vocab_size)), dtype=np.int64)

    def add(self, completions_B: NDArray[np.int64], position: int, sampled: SampledTokens) -> None:
        """Store the tokens of these completions at a position. Raises RunError if a log-probability is NaN."""
        columns = (sampled.ids_B.unsqueeze(-1), sampled.logprobs_B.unsqueeze(-1), sampled.candidates_BK)
        # One transfer for each position. float64 holds every id exactly.
        values = torch.cat([column.double() for column in columns], -1).cpu().numpy()
        if np.isnan(values[:, 1]).any():
            raise DivergedError(
                "the student's logits are not numbers (NaN or infinite): training has diverged, or the weights are "
                "broken. Lower optim.lr, or start from an earlier checkpoint"
            )
        self.ids_CT[completions_B, position] = values[:, 0]
        self.logprobs_CT[completions_B, position] = values[:, 1]
        self.candidates_CTK[completions_B, position] = values[:, 2:]

    def rollouts(self, completions_B: NDArray[np.int64], length: int, truncated: bool) -> list[Rollout]:
        """The rollouts of these completions, which have `length` tokens each."""
        ids_B = [tuple(self.ids_CT[index, :length].tolist()) for index in completions_B]
        texts_B = self.tokenizer.batch_decode(ids_B, skip_special_tokens=True)
        return [
            Rollout(
                row=self.rows_C[index],
                example=self.examples_C[index],
                prompt_ids=self.prompt_ids_C[index],
                ids=ids,
                text=text,
                truncated=truncated,
                logprobs=self.logprobs_CT[index, :length].copy() if self.sampling.logprobs else None,
                candidates=self.candidates_CTK[index, :length].copy() if self.sampling.candidates else None,
            )
            for index, ids, text in zip(completions_B, ids_B, texts_B, strict=True)
        ]


@torch.no_grad()
def _decode(
    student: Student,
    examples: Sequence[Example],
    rows: Sequence[int],
    sampling: Sampling,
    seed: int,
    first_row: int,
    on_fault: OnFault | None,
) -> Iterator[list[Rollout]]:
    """Decode the completions of these rows together. Yields the completions that end at each position."""
    prompts = list(dict.fromkeys(row // sampling.group for row in rows))
    readable, inputs = for_readable(
        partial(_encode, student),
        [examples[index] for index in prompts],
        None if on_fault is None else lambda index, fault: on_fault(prompts[index], fault),
    )
    if inputs is None:
        return
    prompts = [prompts[index] for index in readable]
    rows = [row for row in rows if row // sampling.group in prompts]
    prompt_C = [prompts.index(row // sampling.group) for row in rows]
    prompt_ids_P = [
        tuple(ids[mask.bool()].tolist())
        for ids, mask in zip(inputs["input_ids"], inputs["attention_mask"], strict=True)
    ]

    device = student.model.device
    tokens = sampling.max_tokens
    banned = torch.tensor(student.banned_ids, device=device) if student.banned_ids else None
    sampler = Sampler(sampling.temperature, sampling.top_p, sampling.top_k, sampling.min_p, banned, sampling.candidates)
    rows_C = [first_row + row for row in rows]
    uniforms_BT = torch.from_numpy(uniforms(seed, rows_C, tokens)).to(device)
    decoder = Decoder(student.model, {name: value.to(device) for name, value in inputs.items()}, tokens)
    decoder.select(torch.tensor(prompt_C, device=device))

    examples_C = [examples[row // sampling.group] for row in rows]
    prompt_ids_C = [prompt_ids_P[index] for index in prompt_C]
    buffer = _CompletionBuffer(student, sampling, rows_C, examples_C, prompt_ids_C, decoder.logits_BV.shape[-1])
    completion_B = np.arange(len(rows))  # the completion of each sequence in the batch
    active_B = np.ones(len(rows), dtype=bool)
    end_ids = [*student.eos_ids, *sampling.stop.ids]
    stops = TextStops(sampling.stop.texts, student.tokenizer) if sampling.stop.texts else None
    wasted = 0  # tokens computed for ended sequences since the batch last shrank
    for position in range(tokens):
        sampled = sampler(decoder.logits_BV, uniforms_BT[:, position])
        buffer.add(completion_B, position, sampled)
        ended_B = active_B & np.isin(buffer.ids_CT[completion_B, position], end_ids)
        if stops is not None:
            open_B = np.flatnonzero(active_B & ~ended_B)
            ended_B[open_B] = stops.ended([buffer.ids_CT[completion_B[i], : position + 1].tolist() for i in open_B])
        if ended_B.any():
            active_B &= ~ended_B
            yield buffer.rollouts(completion_B[ended_B], position + 1, False)
        remaining = int(active_B.sum())
        if not remaining:
            return
        if position + 1 == tokens:
            break
        ids_B = sampled.ids_B
        wasted += len(completion_B) - remaining
        # Shrinking the batch copies the cache of the remaining sequences, which costs about as much as a token of each.
        if wasted >= remaining:
            active = torch.from_numpy(np.flatnonzero(active_B)).to(device)
            decoder.select(active)
            ids_B, uniforms_BT = ids_B[active], uniforms_BT[active]
            completion_B, active_B, wasted = completion_B[active_B], active_B[active_B], 0
        decoder.feed(ids_B)
    yield buffer.rollouts(completion_B[active_B], tokens, True)


class HfEngine:
    """Generates in this process, with the weights that are being trained."""

    own_weights = False

    def __init__(self, student: Student, *, batch: int = 0) -> None:
        self.student = student
        self.batch = batch
        self.version = 0

    def generate(
        self,
        examples: Sequence[Example],
        sampling: Sampling,
        *,
        seed: int,
        first_row: int = 0,
        on_finished: OnFinished | None = None,
        on_fault: OnFault | None = None,
    ) -> list[Rollout]:
        """See Engine."""
        return generate(
            self.student,
            examples,
            **{field.name: getattr(sampling, field.name) for field in fields(sampling)},
            batch=self.batch,
            seed=seed,
            first_row=first_row,
            on_finished=on_finished,
            on_fault=on_fault,
        )

    def sync(self, version: int) -> None:
        """Record the version; the weights are shared."""
        self.version = version

    def close(self) -> None:
        """Do nothing: there are no resources to release."""
