"""A composite item: its parts as items, and the combination of their results.

    reward = sum over parts of weight x reward, or 0 if a gate does not hold
           + sum over penalties of min(0, weight x reward)

Penalties count even if a gate fails: otherwise a completion could avoid them by failing a gate.
"""

from collections.abc import Callable, Iterator
from functools import partial

from vold_proto.v1 import status_pb2, verifier_pb2

from vold_verifier.types import INVALID
from vold_verifier.verifiers.composite import CompositeParameters, Gate, Penalty, WeightedPart

OnVerified = Callable[[verifier_pb2.VerifyResult], None]
PartAndResult = tuple[WeightedPart | Gate | Penalty, verifier_pb2.VerifyResult]


def part_items(item: verifier_pb2.VerifyItem, parameters: CompositeParameters) -> Iterator[verifier_pb2.VerifyItem]:
    """Yield an item for each part, in the order of `parameters.all_parts`."""
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


def part_field(parameters: CompositeParameters, number: int) -> str:
    """Return the path of part `number` of `all_parts` in an item, such as `parameters.gates[0]`."""
    for name in ("parts", "gates", "penalties"):
        count = len(getattr(parameters, name))
        if number < count:
            return f"parameters.{name}[{number}]"
        number -= count
    raise IndexError(number)


class PartCollector:
    """Collects the results of all parts, then passes the combined result to `on_verified`."""

    def __init__(self, parameters: CompositeParameters, on_verified: OnVerified) -> None:
        self.parameters = parameters
        self.on_verified = on_verified
        self.results: dict[int, verifier_pb2.VerifyResult] = {}

    def callback(self, number: int) -> OnVerified:
        """Return the function that takes the result of part `number`."""
        return partial(self._add, number)

    def _add(self, number: int, result: verifier_pb2.VerifyResult) -> None:
        self.results[number] = result
        if len(self.results) == len(self.parameters.all_parts):
            self.on_verified(combine(self.parameters, [self.results[n] for n in range(len(self.results))]))


def combine(parameters: CompositeParameters, results: list[verifier_pb2.VerifyResult]) -> verifier_pb2.VerifyResult:
    """Return the result of the composite, with the results of its parts.

    results: in the order of `parameters.all_parts`.
    """
    parts_and_results: list[PartAndResult] = list(zip(parameters.all_parts, results, strict=True))
    combined = verifier_pb2.VerifyResult(
        seconds=sum(result.seconds for result in results), forgeable=any(result.forgeable for result in results)
    )
    combined.parts.extend(
        verifier_pb2.PartResult(name=part.label, role=_role(part), weight=getattr(part, "weight", 0.0), result=result)
        for part, result in parts_and_results
    )
    for number, (part, result) in enumerate(parts_and_results):
        if result.HasField("error") and not (getattr(part, "optional", False) and result.error.reason != INVALID):
            combined.error.CopyFrom(result.error)
            field = part_field(parameters, number)
            combined.error.message = f"{_role(part)} {part.label}: {result.error.message}"
            combined.error.field = f"{field}.{result.error.field}" if result.error.field else field
            return combined
    weighted = [(part, result) for part, result in parts_and_results if isinstance(part, WeightedPart)]
    verified = [(part, result) for part, result in weighted if not result.HasField("error")]
    verified_weight = sum(part.weight for part, _ in verified)
    if not verified_weight:
        combined.error.code = status_pb2.INTERNAL
        combined.error.message = "no part with a weight above 0 could be verified: " + "; ".join(
            result.error.message for _, result in weighted
        )
        return combined
    scale = sum(part.weight for part, _ in weighted) / verified_weight
    failed_gates = [
        part.label for part, result in parts_and_results if isinstance(part, Gate) and not _holds(part, result)
    ]
    part_reward = 0.0 if failed_gates else scale * sum(part.weight * result.reward for part, result in verified)
    penalty = sum(
        min(0.0, part.weight * result.reward) for part, result in parts_and_results if isinstance(part, Penalty)
    )
    combined.reward = part_reward + penalty
    combined.correct = not failed_gates and all(result.correct for _, result in verified)
    first_extracted = next((result for _, result in verified if result.HasField("extracted")), None)
    if first_extracted is not None:
        combined.extracted = first_extracted.extracted
    combined.reason = "; ".join(_explain(part, result, failed_gates) for part, result in parts_and_results)
    return combined


def _explain(part: WeightedPart | Gate | Penalty, result: verifier_pb2.VerifyResult, failed_gates: list[str]) -> str:
    if isinstance(part, Gate):
        return f"gate {part.label}: {'holds' if part.label not in failed_gates else result.reason}"
    return f"{part.label} {'has an error' if result.HasField('error') else f'{result.reward:g} x {part.weight:g}'}"


def _holds(gate: Gate, result: verifier_pb2.VerifyResult) -> bool:
    return result.correct if gate.at_least is None else result.reward >= gate.at_least


def _role(part: WeightedPart | Gate | Penalty) -> str:
    return "gate" if isinstance(part, Gate) else "penalty" if isinstance(part, Penalty) else "part"
