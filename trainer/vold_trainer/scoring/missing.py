"""Scores that do not come: which error of a request is counted, for which rollouts, and which ends the run."""

from collections.abc import Awaitable, Callable

from vold_client import DeadlineExceeded, InvalidArgument, ResourceExhausted, VoldError

from vold_trainer.data import Example
from vold_trainer.data.faults import RowError, RowFault
from vold_trainer.rollout.base import Rollout
from vold_trainer.scoring.refusals import may_be_a_rows, split_by_example
from vold_trainer.scoring.scores import StepScores
from vold_trainer.sentences import sentence
from vold_trainer.services.outages import MonitoredService


async def request_or_mask(
    service: str,
    monitored: MonitoredService,
    request: Callable[[list[Rollout]], Awaitable[None]],
    rollouts: list[Rollout],
    scores: StepScores,
    *,
    stop_at_faults: bool,
) -> None:
    """Make the request. Count the scores that are lost because a service is too slow or too full, or refuses a row. Any
    other error ends the run.

    A request that is refused as a whole is sent in halves, so that one row costs no score of another.

    service: "teacher", "reference" or "verifier". stop_at_faults: a row that the service refuses stops the run.
    """
    try:
        await monitored.call(lambda: request(rollouts))
    except (DeadlineExceeded, ResourceExhausted) as error:
        _count_missing(service, rollouts, error, scores)
    except InvalidArgument as error:
        if not may_be_a_rows(error):
            raise
        halves = split_by_example(rollouts)
        for half in halves:
            await request_or_mask(service, monitored, request, half, scores, stop_at_faults=stop_at_faults)
        if not halves:
            _count_missing(service, rollouts, error, scores)
            report_fault(rollouts[0].example, error, scores, stop=stop_at_faults)


def _count_missing(service: str, rollouts: list[Rollout], error: VoldError, scores: StepScores) -> None:
    """Count the scores of these rollouts as missing for this error."""
    for rollout in rollouts:
        scores.add_missing(service, rollout, error)
        if service == "verifier":
            scores.rows[rollout.row].reason = sentence(error)


def report_fault(example: Example, error: VoldError, scores: StepScores, *, stop: bool) -> None:
    """Record that a service refuses a row. Raises RowError if that stops the run."""
    fault = RowFault.of(example, error, refused=True)
    if stop:
        raise RowError(fault) from error
    scores.faults.append(fault)
