"""Rollouts drawn in this process, by a decode loop over a transformers model's own forward.

Each prompt is computed once, whatever the number of its completions. Sequences that have ended leave the batch, and
are handed on at once, so that scoring runs while the rest is still being drawn.

Shapes: P prompts, C completions drawn together, B those of them still in the batch, S prompt positions, T completion
positions.
"""

from collections.abc import Iterator, Sequence
from dataclasses import asdict
from itertools import chain

import numpy as np
import torch
from numpy.typing import NDArray

from vold_trainer.data import Example
from vold_trainer.errors import RunError
from vold_trainer.rollout.base import OnFinished, Rollout, Sampling
from vold_trainer.rollout.sampler import SampledTokens, Sampler, uniforms
from vold_trainer.student.decoder import Decoder
from vold_trainer.student.models import Student

PIXELS_A_TOKEN = 28 * 28
"""Of a picture, for a token of the prompt: a guess, by which prompts are sorted."""


def generate(
    student: Student,
    examples: Sequence[Example],
    *,
    group: int = 1,
    max_tokens: int,
    temperature: float = 1.0,
    top_p: float = 1.0,
    batch: int = 0,
    seed: int = 0,
    first_row: int = 0,
    logprobs: bool = False,
    candidates: int = 0,
    on_finished: OnFinished | None = None,
) -> list[Rollout]:
    """`group` completions of each example, in order (example by example). temperature 0 is greedy.

    batch: sequences decoded together, 0 for all. What a row draws is a function of `seed`, its number, counted from
    `first_row`, and its prompt: neither `batch` nor what is drawn beside it matters, but for the last digits of the
    logits. logprobs, candidates: keep the student's log-probabilities, and so many of its most likely ids at each
    position. `on_finished` gets every completion once, in the order in which they end.

    Raises RunError where the student's logits are not numbers.
    """
    sampling = Sampling(group, max_tokens, temperature, top_p, logprobs, candidates)
    model = student.model
    was_training = model.training
    model.eval()
    try:
        finished: dict[int, Rollout] = {}
        for part in _parts(student, examples, group, batch):
            for new in _decode(student, examples, part, sampling, seed, first_row):
                finished.update({rollout.row: rollout for rollout in new})
                if on_finished is not None:
                    on_finished(new)
    finally:
        model.train(was_training)
    return [finished[first_row + row] for row in range(len(examples) * group)]


def _parts(student: Student, examples: Sequence[Example], group: int, batch: int) -> list[list[int]]:
    """The completions (prompt * G + completion) that are decoded together, those of the longest prompts first."""
    count = len(examples) * group
    if not batch or batch >= count:
        return [list(range(count))] if count else []
    texts = student.tokenizer([student.render(example) for example in examples], add_special_tokens=False)["input_ids"]
    lengths = [
        len(ids) + sum(image.width * image.height for image in example.images) // PIXELS_A_TOKEN
        for ids, example in zip(texts, examples, strict=True)
    ]
    order = sorted(range(len(examples)), key=lambda index: (-lengths[index], index))
    rows = [[index * group + completion for completion in range(group)] for index in order]
    if group > batch:
        return [own[start : start + batch] for own in rows for start in range(0, group, batch)]
    together = batch // group
    return [list(chain(*rows[start : start + together])) for start in range(0, len(rows), together)]


class _Record:
    """What was drawn for C completions, on the CPU."""

    def __init__(self, count: int, sampling: Sampling, vocab_size: int) -> None:
        tokens = sampling.max_tokens
        self.ids_CT = np.zeros((count, tokens), dtype=np.int64)
        self.logprobs_CT = np.zeros((count, tokens), dtype=np.float32)
        self.candidates_CTK = np.zeros((count, tokens, min(sampling.candidates, vocab_size)), dtype=np.int64)

    def add(self, sequences_B: NDArray[np.int64], position: int, drawn: SampledTokens) -> None:
        packed = (drawn.ids_B.unsqueeze(-1), drawn.logprobs_B.unsqueeze(-1), drawn.candidates_BK)
        # One transfer a step. float64 holds every id exactly.
        found_BK = torch.cat([part.double() for part in packed], -1).cpu().numpy()
        if np.isnan(found_BK[:, 1]).any():
            raise RunError(
                "the student's logits are not numbers (NaN or infinite): training has diverged, or the weights are "
                "broken. Lower optim.lr, or start from an earlier checkpoint"
            )
        self.ids_CT[sequences_B, position] = found_BK[:, 0]
        self.logprobs_CT[sequences_B, position] = found_BK[:, 1]
        self.candidates_CTK[sequences_B, position] = found_BK[:, 2:]


@torch.no_grad()
def _decode(
    student: Student, examples: Sequence[Example], rows: Sequence[int], sampling: Sampling, seed: int, first_row: int
) -> Iterator[list[Rollout]]:
    """Completions of some rows, decoded together; yields those that end at a position."""
    chosen = list(dict.fromkeys(row // sampling.group for row in rows))
    prompt_C = np.array([chosen.index(row // sampling.group) for row in rows])
    inputs = student.encode([examples[index] for index in chosen])
    prompts = [
        tuple(ids[mask.bool()].tolist())
        for ids, mask in zip(inputs["input_ids"], inputs["attention_mask"], strict=True)
    ]

    def rollouts(sequences: NDArray[np.int64], length: int, truncated: bool) -> list[Rollout]:
        completions = [tuple(record.ids_CT[index, :length].tolist()) for index in sequences]
        texts = student.tokenizer.batch_decode(completions, skip_special_tokens=True)
        return [
            Rollout(
                row=first_row + rows[index],
                example=examples[rows[index] // sampling.group],
                prompt_ids=prompts[prompt_C[index]],
                ids=ids,
                text=text,
                truncated=truncated,
                logprobs=record.logprobs_CT[index, :length].copy() if sampling.logprobs else None,
                candidates=record.candidates_CTK[index, :length].copy() if sampling.candidates else None,
            )
            for index, ids, text in zip(sequences, completions, texts, strict=True)
        ]

    device = student.model.device
    tokens = sampling.max_tokens
    banned = torch.tensor(student.place_ids, device=device) if student.place_ids else None
    sampler = Sampler(sampling.temperature, sampling.top_p, banned, sampling.candidates)
    uniforms_BT = torch.from_numpy(uniforms(seed, [first_row + row for row in rows], tokens)).to(device)
    decoder = Decoder(student.model, {name: value.to(device) for name, value in inputs.items()}, tokens)
    decoder.keep(torch.from_numpy(prompt_C).to(device))

    record = _Record(len(rows), sampling, decoder.logits_BV.shape[-1])
    batch_B = np.arange(len(rows))  # which completion each sequence of the batch is
    goes_on_B = np.ones(len(rows), dtype=bool)
    idle = 0  # tokens drawn for nothing since the batch was last made smaller
    for position in range(tokens):
        drawn = sampler(decoder.logits_BV, uniforms_BT[:, position])
        record.add(batch_B, position, drawn)
        ends_B = goes_on_B & np.isin(record.ids_CT[batch_B, position], student.eos_ids)
        if ends_B.any():
            goes_on_B &= ~ends_B
            yield rollouts(batch_B[ends_B], position + 1, False)
        remaining = int(goes_on_B.sum())
        if not remaining:
            return
        if position + 1 == tokens:
            break
        ids_B = drawn.ids_B
        idle += len(batch_B) - remaining
        # Making the batch smaller copies the cache of those that stay, which costs about what a token of them does.
        if idle >= remaining:
            kept = torch.from_numpy(np.flatnonzero(goes_on_B)).to(device)
            decoder.keep(kept)
            ids_B, uniforms_BT = ids_B[kept], uniforms_BT[kept]
            batch_B, goes_on_B, idle = batch_B[goes_on_B], goes_on_B[goes_on_B], 0
        decoder.feed(ids_B)
    yield rollouts(batch_B[goes_on_B], tokens, True)


class HfEngine:
    """Draws in this process, from the very weights that learn."""

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
    ) -> list[Rollout]:
        """See Engine."""
        return generate(
            self.student,
            examples,
            **asdict(sampling),
            batch=self.batch,
            seed=seed,
            first_row=first_row,
            on_finished=on_finished,
        )

    def sync(self, version: int) -> None:
        self.version = version

    def close(self) -> None:
        """Nothing to give back."""
