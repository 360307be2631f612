"""Cold start: supervised fine-tuning on the teacher's traces, with the loss on completion tokens only."""

import time
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch

from vold_trainer.coldstart.broken import BrokenTraces
from vold_trainer.coldstart.rows import load_traces
from vold_trainer.coldstart.teacher_tokens import tokens_of_traces
from vold_trainer.coldstart.validation import METRIC, Validation
from vold_trainer.config import SftConfig
from vold_trainer.data import TraceOrder
from vold_trainer.files import read_json_lines
from vold_trainer.lock import holds_out
from vold_trainer.processes.ranks import Ranks, make_accelerator, share
from vold_trainer.processes.wrapping import PreparedModel
from vold_trainer.runs import trackers
from vold_trainer.runs.folder import RunFolder, StopSignal, elapsed_seconds, trim_after
from vold_trainer.runs.live import SFT_TABLES, Dashboard
from vold_trainer.runs.rescue import ended_run
from vold_trainer.runs.saving import Saver
from vold_trainer.runs.start import Start
from vold_trainer.student.added_tokens import with_tokens
from vold_trainer.student.encoded import EncodedTraces
from vold_trainer.student.fingerprint import fingerprint
from vold_trainer.student.models import load_student
from vold_trainer.student.plan import plan_optimiser_steps
from vold_trainer.terminal import console


@holds_out("run")
def run_sft(config: SftConfig, *, resume: bool = False, step: str = "last", overwrite: bool = False) -> Path:
    """Train the student and write it to `out/model`. Returns that folder.

    resume: go on from the checkpoint `step` ("last", "best", a number) if there is one. overwrite: delete the run that
    is in `out`.
    """
    start = Start(resume, step, overwrite)
    start.check(config.out, config.student.path)
    if config.threads:
        torch.set_num_threads(config.threads)
    torch.manual_seed(config.seed)
    trackers.check_installed(config.trackers)
    ranks = Ranks(make_accelerator(log_with=config.trackers or None, project_dir=str(config.out)))
    ranks.require_one_each(config.batch, "batch")
    student = ranks.run_on_all(lambda: load_student(config.student, tokens_of_traces(config)))
    config = with_tokens(config, student.added_tokens)
    traces, held_out = load_traces(config, student, ranks)
    content = {"student.path": fingerprint(student), "traces": ranks.run_on_all(traces.digest)}
    prepared = PreparedModel(student, config.optim, config.steps, config.seed, ranks)
    saver = Saver(config, student, prepared, ranks, content)
    restored = saver.restore(start)
    steps_done = restored.step if restored else 0
    folder = _open_folder(config, ranks, steps_done, saver.history, resumed=restored is not None)
    order = TraceOrder(traces.keys, config.batch, config.seed)
    validation = Validation(config, student, prepared, held_out) if held_out is not None else None
    loop_state = restored.state.get("loop", {}) if restored else {}
    in_a_row = int(loop_state.get("missing_in_a_row", 0))
    broken = BrokenTraces(config, student, ranks, step=steps_done, in_a_row=in_a_row)
    student.model.train()
    history = read_json_lines(config.out / "metrics.jsonl") if steps_done and ranks.is_main else []
    dashboard = Dashboard(
        "SFT on the teacher's traces", config.steps, SFT_TABLES, console, done=steps_done, history=history
    )
    with StopSignal() as stop, dashboard as live:
        try:
            for number in range(steps_done, config.steps):
                prepared.begin_step(number)
                chosen = order.indices(number)
                metrics = _train_step(prepared, traces, chosen, config.micro, broken)
                steps_done = number + 1
                prepared.end_step()
                try:
                    if validation is not None and validation.is_due(steps_done):
                        metrics |= validation.measure(steps_done)
                finally:  # the step is done, whatever becomes of the measurement
                    folder.write_metrics(steps_done, metrics)
                if metrics["missing/rows"] < len(chosen):
                    complete = validation is None or config.checkpoints.metric != METRIC  # most steps have none
                    ranks.run_on_all(partial(saver.record_metrics, metrics, complete=complete))
                ranks.run_on_all(partial(prepared.skipped.report, steps_done))
                live.update(steps_done, **metrics)
                asked = ranks.gather((stop.requested, saver.is_due(steps_done)))
                stopped = any(requested for requested, _ in asked)
                if asked[0][1] or stopped:
                    saver.save(steps_done, {"missing_in_a_row": broken.in_a_row})
                if stopped:
                    folder.close()
                    raise SystemExit(143)
                ranks.run_on_all(broken.check)
            saver.export()
        except Exception as error:
            ended = ended_run(
                error,
                step=steps_done,
                out=config.out,
                prepared=prepared,
                ranks=ranks,
                save=lambda: saver.save(steps_done, {"missing_in_a_row": broken.in_a_row}),
            )
            raise ended from ended.__cause__
    folder.close()
    ranks.close()
    return config.out / "model"


def _open_folder(
    config: SftConfig, ranks: Ranks, steps_done: int, history: Sequence[Mapping[str, Any]], *, resumed: bool
) -> RunFolder:
    """Open the run's folder. If the run is resumed, first remove what it logged after `steps_done`."""
    if resumed and ranks.is_main:
        trim_after(config.out, steps_done)
    about = {
        "kind": "sft",
        "objective": "sft",
        "seed": config.seed,
        "steps": config.steps,
        "student": config.student.path,
        "processes": ranks.size,
    }
    elapsed = ranks.gather(elapsed_seconds(config.out) if resumed else 0.0)[0]
    return RunFolder(
        config, about, ranks.accelerator, resumed=resumed, steps_done=steps_done, elapsed=elapsed, history=history
    )


def _train_step(
    prepared: PreparedModel, traces: EncodedTraces, chosen: Sequence[int], micro_batch: int, broken: BrokenTraces
) -> dict[str, float]:
    """Take one optimiser step on the chosen traces that can be read. Returns its metrics. If there are none, no weight
    changes, and the schedule goes on.
    """
    started = time.monotonic()
    lengths = [int(traces.lengths[index]) for index in chosen]
    loss = _forward_backward(prepared, traces, chosen, lengths, micro_batch, broken)
    faulty = broken.end_step()
    figures = {}
    if len(faulty) < len(chosen):
        figures = {"loss": loss, "grad_norm": prepared.optimizer_step()}
    seconds = time.monotonic() - started
    return {
        **figures,
        "optim/skipped": float(prepared.skipped.recent),
        "lr": prepared.scheduler_step(),
        "missing/rows": float(len(faulty)),
        "time/step": seconds,
        "tokens/per_second": sum(length for place, length in enumerate(lengths) if place not in faulty) / seconds,
    }


def _forward_backward(
    prepared: PreparedModel,
    traces: EncodedTraces,
    chosen: Sequence[int],
    lengths: Sequence[int],
    micro_batch: int,
    broken: BrokenTraces,
) -> float:
    """Forward and backward pass over this process's share of the chosen traces, whose completions have these lengths.
    Returns the mean loss over the completion tokens of all processes, nats; a trace that cannot be read adds nothing.
    """
    ranks = prepared.ranks
    shares = [share(len(chosen), rank, ranks.size) for rank in range(ranks.size)]
    planned = [[(place, lengths[place]) for place in part] for part in shares]
    (update,) = plan_optimiser_steps(
        planned, ranks.rank, size=0, micro=micro_batch, seed=0, equal_counts=prepared.lock_step
    )
    places = shares[ranks.rank]
    # One object for a trace that the step has twice: its prompt is computed once.
    made = {index: traces[index] for index in {chosen[place] for place in places}}
    own = [made[chosen[place]] for place in places]
    total = 0.0
    for number, indices in enumerate(update.micro_batches, 1):
        # Where all processes must run equally many passes, a pass without traces repeats one with weight 0.
        part = [own[index] for index in indices] or own[:1]
        examples, ids, device = [t.example for t in part], [t.ids for t in part], prepared.accelerator.device
        in_part = [places[index] for index in indices] or places[:1]
        batch, readable = broken.batch(examples, ids, in_part, device=device, share=not prepared.lock_step)
        with prepared.micro_batch(last=number == len(update.micro_batches)):
            scores = prepared.module(batch.inputs, batch.predicts_BS, batch.ids_N)
            loss = -scores.logprobs_N.sum() / update.tokens * bool(indices and readable)
            prepared.backward(loss)
        total += loss.item()
    return ranks.sum({"loss": total})["loss"]
