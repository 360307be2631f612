"""Rollouts with transformers' own generate. Each completion is handed on as soon as it ends, so that scoring
runs while the rest of the batch is still being drawn.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import (
    LogitsProcessor,
    LogitsProcessorList,
    PreTrainedModel,
    StoppingCriteria,
    StoppingCriteriaList,
)

from vold_trainer.data import Example
from vold_trainer.models import Student
from vold_trainer.rollout.base import OnFinished, Rollout, Sampling


class _Recorder(LogitsProcessor):
    """Keeps of each position what cannot be had later without another forward pass. Changes nothing."""

    def __init__(self, temperature: float, logprobs: bool, candidates: int) -> None:
        self.temperature = temperature or 1.0
        self.logprobs = logprobs
        self.candidates = candidates
        self.drawn: list[Tensor] = []
        self.likely: list[Tensor] = []
        self._all_BV: Tensor | None = None

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        if self.logprobs:
            self._all_BV = (scores.float() / self.temperature).log_softmax(-1)
        if self.candidates:
            self.likely.append(scores.topk(min(self.candidates, scores.shape[-1]), -1).indices.cpu())
        return scores

    def drew(self, ids_B: Tensor) -> None:
        """Told which ids were drawn from what it saw last."""
        if self._all_BV is not None:
            self.drawn.append(self._all_BV.gather(-1, ids_B.unsqueeze(-1)).squeeze(-1).cpu())

    def of(self, row: int, length: int) -> dict[str, Any]:
        """What is known of a row's first `length` tokens, as fields of a Rollout."""
        known: dict[str, Any] = {}
        if self.logprobs:
            known["logprobs"] = torch.stack([values_B[row] for values_B in self.drawn[:length]]).numpy()
        if self.candidates:
            known["candidates"] = torch.stack([ids_BK[row] for ids_BK in self.likely[:length]]).numpy()
        return known


class _HandOn(StoppingCriteria):
    """Notices rows that just ended. Stops nothing by itself."""

    def __init__(
        self,
        eos_ids: Sequence[int],
        prompt_length: int,
        hand_on: Callable[[list[int], Tensor], None],
        recorder: _Recorder,
    ) -> None:
        self.recorder = recorder
        self.eos_ids = torch.tensor(eos_ids)
        self.prompt_length = prompt_length
        self.hand_on = hand_on
        self.done_B: Tensor | None = None

    def __call__(self, input_ids: Tensor, scores: Tensor, **kwargs: object) -> Tensor:
        self.recorder.drew(input_ids[:, -1])
        ended_B = torch.isin(input_ids[:, -1], self.eos_ids.to(input_ids.device))
        if self.done_B is None:
            self.done_B = torch.zeros_like(ended_B)
        new_B = ended_B & ~self.done_B
        if new_B.any():
            self.done_B = self.done_B | ended_B
            self.hand_on(new_B.nonzero().flatten().tolist(), input_ids[:, self.prompt_length :])
        return torch.zeros_like(ended_B)


@torch.no_grad()
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

    batch: sequences generated together, 0 for all. The same seed gives the same completions on the CPU.
    logprobs, candidates: keep the student's log-probabilities, and so many of its most likely ids at each position.
    `on_finished` gets every completion once, in the order in which they end.
    """
    model = student.model
    was_training = model.training
    model.eval()
    devices = [model.device] if model.device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(seed)
        rollouts: list[Rollout] = []
        together = max(1, batch // group) if batch else len(examples)
        for start in range(0, len(examples), together):
            rollouts += _generate_batch(
                student,
                examples[start : start + together],
                first_row + start * group,
                group,
                max_tokens,
                temperature,
                top_p,
                _Recorder(temperature, logprobs, candidates),
                on_finished,
            )
    model.train(was_training)
    return rollouts


def _generate_batch(
    student: Student,
    examples: Sequence[Example],
    first_row: int,
    group: int,
    max_tokens: int,
    temperature: float,
    top_p: float,
    recorder: _Recorder,
    on_finished: OnFinished | None,
) -> list[Rollout]:
    inputs = {name: value.to(student.model.device) for name, value in student.encode(examples).items()}
    prompts = [
        tuple(ids[mask.bool()].tolist())
        for ids, mask in zip(inputs["input_ids"], inputs["attention_mask"], strict=True)
    ]
    eos_ids = student.eos_ids
    finished: dict[int, Rollout] = {}

    def collect(rows: list[int], ids_BT: Tensor, truncated: bool = False) -> None:
        completions = [tuple(ids_BT[row].tolist()) for row in rows]
        texts = student.tokenizer.batch_decode(completions, skip_special_tokens=True)
        new = [
            Rollout(
                *(first_row + row, examples[row // group], prompts[row // group], ids, text, truncated),
                **recorder.of(row, len(ids)),
            )
            for row, ids, text in zip(rows, completions, texts, strict=True)
        ]
        finished.update({rollout.row: rollout for rollout in new})
        if on_finished is not None:
            on_finished(new)

    prompt_length = inputs["input_ids"].shape[1]
    sampling = {"do_sample": True, "temperature": temperature, "top_p": top_p, "top_k": 0} if temperature else {}
    draw: Any = student.model.generate
    sequences = draw(
        **inputs,
        max_new_tokens=max_tokens,
        num_return_sequences=group,
        eos_token_id=eos_ids,
        pad_token_id=student.pad_id,
        suppress_tokens=student.place_ids or None,
        logits_processor=LogitsProcessorList([recorder]),
        stopping_criteria=StoppingCriteriaList([_HandOn(eos_ids, prompt_length, collect, recorder)]),
        **(sampling or {"do_sample": False}),
        **_cache(student.model),
    )
    last = first_row + len(examples) * group
    rest = [row - first_row for row in range(first_row, last) if row not in finished]
    if rest:
        collect(rest, sequences[:, prompt_length:], truncated=True)
    return [finished[row] for row in range(first_row, last)]


def _cache(model: PreTrainedModel) -> dict[str, Any]:
    """A cache of fixed size where the model can use one: a growing one is copied at every token."""
    if not getattr(model, "_can_compile_fullgraph", False):
        return {}
    return {"cache_implementation": "static", "disable_compile": True}


class HfEngine:
    """Draws in this process, from the very weights that learn."""

    own_weights = False

    def __init__(self, student: Student, *, batch: int = 0) -> None:
        self.student = student
        self.batch = batch
        self.version = 0

    def draw(
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
            group=sampling.group,
            max_tokens=sampling.max_tokens,
            temperature=sampling.temperature,
            top_p=sampling.top_p,
            batch=self.batch,
            seed=seed,
            first_row=first_row,
            logprobs=sampling.logprobs,
            candidates=sampling.candidates,
            on_finished=on_finished,
        )

    def sync(self, version: int) -> None:
        self.version = version

    def close(self) -> None:
        """Nothing to give back."""
