"""Whether weights of half precision can take updates as small as the learning rate.

AdamW changes a weight by about the learning rate (Kingma and Ba, arXiv 1412.6980, section 2.1). A weight w in
[2^(e-1), 2^e) has neighbours at a distance of eps * 2^(e-1), with eps = 2^-7 in bfloat16 and 2^-10 in float16, and an
update smaller than half of that is rounded away: at 1e-6 every bfloat16 weight above 5e-4 stays as it is.
"""

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from vold_trainer.terminal import console

HALF = (torch.bfloat16, torch.float16)
SAMPLE = 1 << 16
"""About how many weights are looked at, evenly spaced over all."""
ENOUGH = 0.5
"""A smaller share of weights that change is warned of."""
REMEDY = "Use student.dtype=float32 with student.compute=bfloat16"


class WeightSample:
    """Evenly spaced trainable weights of half precision. count: of them; 0 if there are none, as with LoRA."""

    def __init__(self, model: nn.Module, size: int = SAMPLE) -> None:
        trainable = (value for value in model.parameters() if value.requires_grad and value.dtype in HALF)
        self._parameters: Sequence[nn.Parameter] = list(trainable)
        lengths = [_local(value).numel() for value in self._parameters]
        self._stride = max(1, sum(lengths) // size)
        starts = [-sum(lengths[:index]) % self._stride for index in range(len(lengths))]
        self._starts = starts
        self.count = sum(len(range(start, n, self._stride)) for start, n in zip(starts, lengths, strict=True))
        self.dtype = str(self._parameters[0].dtype).removeprefix("torch.") if self._parameters else ""

    @torch.no_grad()
    def values(self) -> Tensor:
        """The weights, float32 [count], on their device."""
        return torch.cat([self._pick(value, start) for value, start in self._pairs()]).float()

    @torch.no_grad()
    def has_gradient(self) -> Tensor:
        """bool [count]: whether the gradient of a weight is not zero."""
        return torch.cat(
            [
                torch.zeros_like(self._pick(value, start), dtype=torch.bool)
                if value.grad is None
                else self._pick(value.grad, start) != 0
                for value, start in self._pairs()
            ]
        )

    def movable(self, lr: float) -> float:
        """The share of the weights that an update of `lr` changes."""
        shares = [
            can_move(self._pick(value, start).detach(), lr).float()
            for value, start in self._pairs()
            if value.numel() > start
        ]
        return float(torch.cat(shares).mean())

    def _pairs(self) -> Iterator[tuple[nn.Parameter, int]]:
        return zip(self._parameters, self._starts, strict=True)

    def _pick(self, value: Tensor, start: int) -> Tensor:
        return _local(value).reshape(-1)[start :: self._stride]


def _local(value: Tensor) -> Tensor:
    return value.to_local() if isinstance(value, DTensor) else value


def can_move(weights: Tensor, lr: float) -> Tensor:
    """bool, of the shape of `weights`: whether an update of `lr` away from zero is not rounded away.

    weights: bfloat16 or float16.
    """
    limits = torch.finfo(weights.dtype)
    exponents = torch.frexp(weights.float().abs().clamp(min=limits.tiny)).exponent
    return limits.eps * torch.exp2(exponents - 1.0) / 2 < lr


def rounding_warning(model: nn.Module, lr: float) -> str:
    """What to say before a run about updates of `lr`; empty if most of the weights can take them."""
    sample = WeightSample(model)
    if not sample.count or (share := sample.movable(lr)) >= ENOUGH:
        return ""
    return (
        f"the weights are {sample.dtype}, in which an update of optim.lr={lr:g} changes {share:.1%} of them and is "
        f"rounded away in the others. {REMEDY}"
    )


class RoundingWatch:
    """Warns when it is made, and once more with what the first optimizer step at the full learning rate changed."""

    def __init__(self, model: nn.Module, lr: float) -> None:
        self._lr = lr
        self._sample: WeightSample | None = WeightSample(model)
        if not self._sample.count:
            self._sample = None
        elif warning := rounding_warning(model, lr):
            console.print(f"[yellow]{warning}", highlight=False)

    @contextlib.contextmanager
    def step(self, optimizer: Any) -> Iterator[None]:
        """Wrap an optimizer step."""
        sample = self._sample
        if sample is None or optimizer.param_groups[0]["lr"] < 0.99 * self._lr:  # in the warm-up
            yield
            return
        self._sample = None
        before, has_gradient = sample.values(), sample.has_gradient()
        yield
        changed = int(((sample.values() != before) & has_gradient).sum())
        total = int(has_gradient.sum())
        if changed < ENOUGH * total:
            console.print(
                f"[yellow]the first step at optim.lr={self._lr:g} changed {changed:,} of {total:,} {sample.dtype} "
                f"weights that had a gradient ({changed / total:.1%} of a sample): the others are rounded to what they "
                f"were. {REMEDY}",
                highlight=False,
            )
