"""Cold start: supervised fine-tuning on the teacher's traces, with the loss on completion tokens only."""

import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import torch

from vold_trainer.config import SftConfig
from vold_trainer.data import PromptOrder
from vold_trainer.files import read_json_lines
from vold_trainer.lock import holds_out
from vold_trainer.processes.ranks import Ranks, make_accelerator, share
from vold_trainer.processes.wrapping import PreparedModel
from vold_trainer.runs import trackers
from vold_trainer.runs.folder import RunFolder, StopSignal, elapsed_seconds, trim_after
from vold_trainer.runs.live import SFT_TABLES, Dashboard
from vold_trainer.runs.saving import Saver
from vold_trainer.student.batching import make_batch
from vold_trainer.student.models import Student, load_student
from vold_trainer.student.plan import plan_optimiser_steps
from vold_trainer.student.traces import Trace, read_traces
from vold_trainer.terminal import console


@holds_out("run")
def run_sft(config: SftConfig, *, resume: bool = False) -> Path:
    """Train the student and write it to `out/model`. Returns that folder."""
    if config.threads:
        torch.set_num_threads(config.threads)
    torch.manual_seed(config.seed)
    trackers.check_installed(config.trackers)
    ranks = Ranks(make_accelerator(log_with=config.trackers or None, project_dir=str(config.out)))
    ranks.require_one_each(config.batch, "batch")
    student = ranks.run_on_all(lambda: load_student(config.student))
    traces = ranks.run_on_all(lambda: read_traces(config.traces, student))
    prepared = PreparedModel(student, config.optim, config.steps, config.seed, ranks)
    saver = Saver(config, student, prepared, ranks, {"traces": len(traces), "a step": config.batch})
    restored = saver.restore_latest(resume)
    steps_done = restored.step if restored else 0
    folder = _open_folder(config, ranks, steps_done, resumed=restored is not None)
    order = PromptOrder(len(traces), config.batch, config.seed)
    student.model.train()
    history = read_json_lines(config.out / "metrics.jsonl") if steps_done and ranks.is_main else []
    dashboard = Dashboard(
        "SFT on the teacher's traces", config.steps, SFT_TABLES, console, done=steps_done, history=history
    )
    with StopSignal() as stop, dashboard as live:
        for step in range(steps_done, config.steps):
            metrics = _train_step(student, prepared, [traces[index] for index in order.indices(step)], config.micro)
            folder.write_metrics(step + 1, metrics)
            ranks.run_on_all(partial(saver.record_metrics, metrics))
            live.update(step + 1, **metrics)
            stopped = ranks.any(stop.requested)
            if saver.is_due(step + 1) or stopped:
                saver.save(step + 1, {})
            if stopped:
                folder.close()
                raise SystemExit(143)
    saver.export()
    folder.close()
    return config.out / "model"


def _open_folder(config: SftConfig, ranks: Ranks, steps_done: int, *, resumed: bool) -> RunFolder:
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
    return RunFolder(config, about, ranks.accelerator, resumed=resumed, steps_done=steps_done, elapsed=elapsed)


def _train_step(
    student: Student, prepared: PreparedModel, traces: Sequence[Trace], micro_batch: int
) -> dict[str, float]:
    """Take one optimiser step on the traces. Returns its metrics."""
    started = time.monotonic()
    loss = _forward_backward(student, prepared, traces, micro_batch)
    grad_norm = prepared.optimizer_step()
    seconds = time.monotonic() - started
    return {
        "loss": loss,
        "grad_norm": grad_norm,
        "lr": prepared.scheduler_step(),
        "time/step": seconds,
        "tokens/per_second": sum(len(trace.ids) for trace in traces) / seconds,
    }


def _forward_backward(student: Student, prepared: PreparedModel, traces: Sequence[Trace], micro_batch: int) -> float:
    """Forward and backward pass over this process's share of the traces. Returns the mean loss over the completion
    tokens of all processes, nats.
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
        examples, device = [trace.example for trace in part], prepared.accelerator.device
        batch = make_batch(student, examples, [t.ids for t in part], device=device, share=not prepared.lock_step)
        with prepared.micro_batch(last=number == len(update.micro_batches)):
            scores = prepared.module(batch.inputs, batch.predicts_BS, batch.ids_N)
            loss = -scores.logprobs_N.sum() / update.tokens * bool(indices)
            prepared.backward(loss)
        total += loss.item()
    return ranks.sum({"loss": total})["loss"]
