"""Cold start: supervised fine-tuning on the teacher's traces, with the loss on completion tokens only."""

import time
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch

from vold_trainer.coldstart.broken import BrokenTraces
from vold_trainer.coldstart.teacher_tokens import tokens_of_traces
from vold_trainer.config import SftConfig
from vold_trainer.data import TraceOrder
from vold_trainer.data.digest import digest
from vold_trainer.data.keys import row_keys
from vold_trainer.data.traces import TraceRules
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
from vold_trainer.student.fingerprint import fingerprint
from vold_trainer.student.models import Student, load_student
from vold_trainer.student.plan import plan_optimiser_steps
from vold_trainer.student.traces import Trace, read_traces
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
    skip = bool(config.skip_broken)
    rules = TraceRules(config.columns, config.limit, prefix="")
    traces = ranks.run_on_all(lambda: read_traces(config.traces, student, skip_broken=skip, rules=rules))
    content = {
        "student.path": fingerprint(student),
        "traces": digest((trace.example, trace.ids) for trace in traces),
    }
    prepared = PreparedModel(student, config.optim, config.steps, config.seed, ranks)
    saver = Saver(config, student, prepared, ranks, content)
    restored = saver.restore(start)
    steps_done = restored.step if restored else 0
    folder = _open_folder(config, ranks, steps_done, saver.history, resumed=restored is not None)
    order = TraceOrder(row_keys([trace.example for trace in traces]), config.batch, config.seed)
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
                chosen = [traces[index] for index in order.indices(number)]
                metrics = _train_step(student, prepared, chosen, config.micro, broken)
                steps_done = number + 1
                prepared.end_step()
                folder.write_metrics(steps_done, metrics)
                if metrics["missing/rows"] < len(chosen):
                    ranks.run_on_all(partial(saver.record_metrics, metrics))
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
    student: Student, prepared: PreparedModel, traces: Sequence[Trace], micro_batch: int, broken: BrokenTraces
) -> dict[str, float]:
    """Take one optimiser step on the traces that can be read. Returns its metrics. If there are none, no weight
    changes, and the schedule goes on.
    """
    started = time.monotonic()
    loss = _forward_backward(student, prepared, traces, micro_batch, broken)
    faulty = broken.end_step()
    figures = {}
    if len(faulty) < len(traces):
        figures = {"loss": loss, "grad_norm": prepared.optimizer_step()}
    seconds = time.monotonic() - started
    return {
        **figures,
        "optim/skipped": float(prepared.skipped.recent),
        "lr": prepared.scheduler_step(),
        "missing/rows": float(len(faulty)),
        "time/step": seconds,
        "tokens/per_second": sum(len(trace.ids) for index, trace in enumerate(traces) if index not in faulty) / seconds,
    }


def _forward_backward(
    student: Student, prepared: PreparedModel, traces: Sequence[Trace], micro_batch: int, broken: BrokenTraces
) -> float:
    """Forward and backward pass over this process's share of the traces. Returns the mean loss over the completion
    tokens of all processes, nats; a trace that cannot be read adds nothing.
    """
    ranks = prepared.ranks
    shares = [share(len(traces), rank, ranks.size) for rank in range(ranks.size)]
    lengths = [[(index, len(traces[index].ids)) for index in part] for part in shares]
    (update,) = plan_optimiser_steps(
        lengths, ranks.rank, size=0, micro=micro_batch, seed=0, equal_counts=prepared.lock_step
    )
    own = [traces[index] for index in shares[ranks.rank]]
    total = 0.0
    for number, indices in enumerate(update.micro_batches, 1):
        # Where all processes must run equally many passes, a pass without traces repeats one with weight 0.
        part = [own[index] for index in indices] or own[:1]
        examples, ids, device = [t.example for t in part], [t.ids for t in part], prepared.accelerator.device
        places = [shares[ranks.rank][index] for index in indices] or shares[ranks.rank][:1]
        batch, readable = broken.batch(examples, ids, places, device=device, share=not prepared.lock_step)
        with prepared.micro_batch(last=number == len(update.micro_batches)):
            scores = prepared.module(batch.inputs, batch.predicts_BS, batch.ids_N)
            loss = -scores.logprobs_N.sum() / update.tokens * bool(indices and readable)
            prepared.backward(loss)
        total += loss.item()
    return ranks.sum({"loss": total})["loss"]
