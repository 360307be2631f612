"""The loss on traces that are not learned."""

import time

import torch

from vold_trainer.coldstart.broken import text_batch
from vold_trainer.config import SftConfig
from vold_trainer.data.faults import RowError, RowFault
from vold_trainer.processes.ranks import share
from vold_trainer.processes.wrapping import PreparedModel
from vold_trainer.runs.faults import FaultLog
from vold_trainer.student.encoded import EncodedTraces
from vold_trainer.student.models import Student
from vold_trainer.student.plan import plan_optimiser_steps
from vold_trainer.student.readable import make_readable_batch

METRIC = "validation/loss"


class Validation:
    """Measures the loss every `validation.every` steps and after the last one. Changes no weight and draws nothing."""

    def __init__(self, config: SftConfig, student: Student, prepared: PreparedModel, traces: EncodedTraces) -> None:
        self.config = config
        self.student = student
        self.prepared = prepared
        self.traces = traces
        self._log = FaultLog()

    def is_due(self, step: int) -> bool:
        """Whether the loss is measured after `step` steps."""
        return step % self.config.validation.every == 0 or step == self.config.steps

    def measure(self, step: int) -> dict[str, float]:
        """The mean loss over the completion tokens of all traces, nats, and the seconds that it took; without a loss if
        no trace can be read. All processes call it at the same time.
        """
        started = time.monotonic()
        self.student.model.eval()
        try:
            with torch.no_grad():
                loss = self._loss(step)
        finally:
            self.student.model.train()
        seconds = {"time/validation": time.monotonic() - started}
        return seconds if loss is None else {METRIC: loss, **seconds}

    def _loss(self, step: int) -> float | None:
        prepared, traces = self.prepared, self.traces
        ranks = prepared.ranks
        shares = [share(len(traces), rank, ranks.size) for rank in range(ranks.size)]
        lengths = [[(index, int(traces.lengths[index])) for index in part] for part in shares]
        (plan,) = plan_optimiser_steps(
            lengths, ranks.rank, size=0, micro=self.config.micro, seed=0, equal_counts=prepared.lock_step
        )
        own = shares[ranks.rank]
        sums = {"loss": 0.0, "tokens": 0.0}
        faults: dict[int, RowFault] = {}
        for indices in plan.micro_batches:
            total, tokens = self._pass([own[index] for index in indices], faults)
            sums["loss"] += total
            sums["tokens"] += tokens
        sums = ranks.sum(sums)
        self._log.add([fault for part in ranks.gather(faults) for fault in part.values()], step)
        return sums["loss"] / sums["tokens"] if sums["tokens"] else None

    def _pass(self, indices: list[int], faults: dict[int, RowFault]) -> tuple[float, int]:
        """(the summed loss over the completion tokens of these traces, how many tokens). faults: gets those of traces
        that cannot be read. Without a trace, runs a pass that counts for nothing, which other processes may wait for.
        """

        def on_fault(place: int, fault: RowFault) -> None:
            if self.config.skip_broken is False:
                raise RowError(fault, "skip_broken")
            faults[indices[place]] = fault

        chosen = [self.traces[index] for index in indices]
        examples, ids = [trace.example for trace in chosen], [trace.ids for trace in chosen]
        device, shared = self.prepared.accelerator.device, not self.prepared.lock_step
        batch = None
        if chosen:
            _, batch = make_readable_batch(self.student, examples, ids, on_fault, device=device, share=shared)
        counts = batch is not None
        if batch is None:
            batch = text_batch(self.student, device=device, share=shared)
        scores = self.prepared.module(batch.inputs, batch.predicts_BS, batch.ids_N)
        return (-float(scores.logprobs_N.cpu().double().sum()), len(batch.ids_N)) if counts else (0.0, 0)
