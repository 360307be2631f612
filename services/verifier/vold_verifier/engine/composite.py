"""A composite item as its parts, and their results as one.

    reward = sum over parts of weight x reward, 0 where a gate does not hold
           + sum over penalties of min(0, weight x reward)

Penalties count where a gate fails too, or a completion could escape them by failing it.
"""

from collections.abc import Callable, Iterator
from functools import partial

from vold_proto.v1 import status_pb2, verifier_pb2

from vold_verifier.verifiers.composite import CompositeParameters, Gate, Penalty, WeightedPart

Receive = Callable[[verifier_pb2.VerifyResult], None]
Judged = tuple[WeightedPart | Gate | Penalty, verifier_pb2.VerifyResult]


def part_items(item: verifier_pb2.VerifyItem, parameters: CompositeParameters) -> Iterator[verifier_pb2.VerifyItem]:
    """The parts as items of their own, in the order of `parameters.all_parts`."""
    for part in parameters.all_parts:
        message = verifier_pb2.VerifyItem(
            verifier=part.verifier,
            completion=item.completion,
            reference=item.reference if part.reference is None else part.reference,
            prompt=item.prompt,
        )
        if part.parameters:
            message.parameters.update(part.parameters)
        yield message


def field_of(parameters: CompositeParameters, number: int) -> str:
    """Where part `number` of `all_parts` stands in an item."""
    for name in ("parts", "gates", "penalties"):
        count = len(getattr(parameters, name))
        if number < count:
            return f"parameters.{name}[{number}]"
        number -= count
    raise IndexError(number)


class Collector:
    """Waits for the results of all parts, then hands on the result of the whole."""

    def __init__(self, parameters: CompositeParameters, receive: Receive) -> None:
        self.parameters = parameters
        self.receive = receive
        self.results: dict[int, verifier_pb2.VerifyResult] = {}

    def receiver(self, number: int) -> Receive:
        return partial(self._arrived, number)

    def _arrived(self, number: int, result: verifier_pb2.VerifyResult) -> None:
        self.results[number] = result
        if len(self.results) == len(self.parameters.all_parts):
            self.receive(combine(self.parameters, [self.results[n] for n in range(len(self.results))]))


def combine(parameters: CompositeParameters, results: list[verifier_pb2.VerifyResult]) -> verifier_pb2.VerifyResult:
    """The result of the whole, with its parts. results: in the order of `parameters.all_parts`."""
    judged: list[Judged] = list(zip(parameters.all_parts, results, strict=True))
    whole = verifier_pb2.VerifyResult(seconds=sum(result.seconds for result in results))
    whole.parts.extend(
        verifier_pb2.PartResult(name=part.label, role=_role(part), weight=getattr(part, "weight", 0.0), result=result)
        for part, result in judged
    )
    for number, (part, result) in enumerate(judged):
        if result.HasField("error") and not getattr(part, "optional", False):
            whole.error.CopyFrom(result.error)
            field = field_of(parameters, number)
            whole.error.message = f"{_role(part)} {part.label}: {result.error.message}"
            whole.error.field = f"{field}.{result.error.field}" if result.error.field else field
            return whole
    parts = [(part, result) for part, result in judged if isinstance(part, WeightedPart)]
    there = [(part, result) for part, result in parts if not result.HasField("error")]
    weight = sum(part.weight for part, _ in there)
    if not weight:
        whole.error.code = status_pb2.INTERNAL
        whole.error.message = "no part that counts could be judged: " + "; ".join(r.error.message for _, r in parts)
        return whole
    scale = sum(part.weight for part, _ in parts) / weight
    failed = [part.label for part, result in judged if isinstance(part, Gate) and not _holds(part, result)]
    earned = 0.0 if failed else scale * sum(part.weight * result.reward for part, result in there)
    taken = sum(min(0.0, part.weight * result.reward) for part, result in judged if isinstance(part, Penalty))
    whole.reward = earned + taken
    whole.correct = not failed and all(result.correct for _, result in there)
    first = next((result for _, result in there if result.HasField("extracted")), None)
    if first is not None:
        whole.extracted = first.extracted
    whole.reason = "; ".join(
        (f"gate {part.label}: {'holds' if part.label not in failed else result.reason}")
        if isinstance(part, Gate)
        else f"{part.label} {'has an error' if result.HasField('error') else f'{result.reward:g} x {part.weight:g}'}"
        for part, result in judged
    )
    return whole


def _holds(gate: Gate, result: verifier_pb2.VerifyResult) -> bool:
    return result.correct if gate.at_least is None else result.reward >= gate.at_least


def _role(part: WeightedPart | Gate | Penalty) -> str:
    return "gate" if isinstance(part, Gate) else "penalty" if isinstance(part, Penalty) else "part"
