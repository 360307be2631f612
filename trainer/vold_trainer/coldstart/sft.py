"""Cold start: supervised fine-tuning on a teacher's traces, loss on the completions only, vision tower frozen."""

import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import torch

from vold_trainer.config import SftConfig
from vold_trainer.data import PromptOrder
from vold_trainer.files import read_json_lines
from vold_trainer.processes.ranks import Ranks, make_accelerator, share
from vold_trainer.processes.wrapping import Wrapped
from vold_trainer.runs import trackers
from vold_trainer.runs.folder import RunFolder, StopSignal, time_so_far, trim_after
from vold_trainer.runs.live import SFT, Dashboard
from vold_trainer.runs.saving import Saver
from vold_trainer.student.batching import make_batch
from vold_trainer.student.models import Student, load_student
from vold_trainer.student.plan import plan_updates
from vold_trainer.student.traces import Trace, read_traces
from vold_trainer.terminal import console


def run_sft(config: SftConfig, *, resume: bool = False) -> Path:
    """Train, and write the student to `out/model`. Returns that folder."""
    if config.threads:
        torch.set_num_threads(config.threads)
    torch.manual_seed(config.seed)
    trackers.check_installed(config.trackers)
    ranks = Ranks(make_accelerator(log_with=config.trackers or None, project_dir=str(config.out)))
    ranks.check(config.batch, "batch")
    student = ranks.together(lambda: load_student(config.student))
    traces = ranks.together(lambda: read_traces(config.traces, student))
    wrapped = Wrapped(student, config.optim, config.steps, config.seed, ranks)
    saver = Saver(config, student, wrapped, ranks, {"traces": len(traces), "a step": config.batch})
    found = saver.begin(resume)
    first = found.step if found else 0
    if found is not None and ranks.first:
        trim_after(config.out, first)
    about = {
        "kind": "sft",
        "objective": "sft",
        "seed": config.seed,
        "steps": config.steps,
        "student": config.student.path,
        "processes": ranks.size,
    }
    since = ranks.gather(time_so_far(config.out) if found else 0.0)[0]
    folder = RunFolder(config, about, ranks.accelerator, resumed=found is not None, first=first, since=since)
    order = PromptOrder(len(traces), config.batch, config.seed)
    student.model.train()
    history = read_json_lines(config.out / "metrics.jsonl") if first and ranks.first else []
    view = Dashboard("SFT on the teacher's traces", config.steps, SFT, console, done=first, history=history)
    with StopSignal() as stop, view as live:
        for step in range(first, config.steps):
            started = time.monotonic()
            chosen = [traces[index] for index in order.indices(step)]
            loss = _step(student, wrapped, chosen, config.micro)
            norm = wrapped.step()
            seconds = time.monotonic() - started
            figures = {
                "loss": loss,
                "grad_norm": norm,
                "lr": wrapped.advance(),
                "time/step": seconds,
                "tokens/per_second": sum(len(trace.ids) for trace in chosen) / seconds,
            }
            folder.metrics(step + 1, figures)
            ranks.together(partial(saver.saw, figures))
            live.update(step + 1, **figures)
            stopped = ranks.any(stop.requested)
            if saver.due(step + 1) or stopped:
                saver.save(step + 1, {})
            if stopped:
                folder.close()
                raise SystemExit(143)
    saver.export()
    folder.close()
    return config.out / "model"


def _step(student: Student, wrapped: Wrapped, traces: Sequence[Trace], micro: int) -> float:
    """Forward and backward of one step, of which this process takes its share; the mean loss over all completion
    tokens, nats.
    """
    ranks = wrapped.ranks
    shares = [share(len(traces), rank, ranks.size) for rank in range(ranks.size)]
    drawn = [[(index, len(traces[index].ids)) for index in part] for part in shares]
    (update,) = plan_updates(drawn, ranks.rank, size=0, micro=micro, seed=0, even=wrapped.even)
    own = [traces[index] for index in shares[ranks.rank]]
    total = 0.0
    for number, indices in enumerate(update.passes, 1):
        part = [own[index] for index in indices] or own[:1]
        examples, device = [trace.example for trace in part], wrapped.accelerator.device
        batch = make_batch(student, examples, [t.ids for t in part], device=device, share=not wrapped.even)
        with wrapped.one_pass(last=number == len(update.passes)):
            scores = wrapped.module(batch.inputs, batch.predicts_BS, batch.ids_N)
            loss = -scores.logprobs_N.sum() / update.tokens * bool(indices)
            wrapped.add(loss)
        total += loss.item()
    return ranks.sum({"loss": total})["loss"]
