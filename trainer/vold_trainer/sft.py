"""Cold start: supervised fine-tuning on a teacher's traces, loss on the completions only, vision tower frozen."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from accelerate import Accelerator

from vold_trainer import checkpoint
from vold_trainer.batching import make_batch, micro_batches
from vold_trainer.config import SftConfig
from vold_trainer.data import Example, PromptOrder
from vold_trainer.data.traces import trace_rows
from vold_trainer.errors import UsageError
from vold_trainer.models import CompletionScorer, Student, load_student
from vold_trainer.optim import make_optimizer
from vold_trainer.run import RunFolder, StopSignal, progress, trim_after


@dataclass(frozen=True)
class Trace:
    """A prompt and the completion to learn, as the student's token ids."""

    example: Example
    ids: tuple[int, ...]


def read_traces(path: Path, student: Student) -> list[Trace]:
    """The traces of `vold traces`, or any JSONL or Parquet with "messages" (or "prompt") and "completion".

    "completion_ids" are used as they are where the student's tokenizer reads them as the same text; otherwise the
    text is tokenized and ended with the student's EOS. Raises UsageError that names file, line and field.
    """
    if not path.is_file():
        raise UsageError(f"traces {str(path)!r} does not exist: make it with `vold traces`")
    traces = [_trace(example, completion, ids, student) for example, completion, ids in trace_rows(path)]
    if not traces:
        raise UsageError(f"traces {str(path)!r} is empty: no completion was kept, or the file was cut off")
    return traces


def _trace(example: Example, completion: str, ids: Sequence[int] | None, student: Student) -> Trace:
    if ids and _reads_as(student, ids, completion):
        return Trace(example, tuple(ids))
    ids = student.tokenizer(completion, add_special_tokens=False)["input_ids"]
    return Trace(example, (*ids, student.eos_ids[0]))


def _reads_as(student: Student, ids: Sequence[int], text: str) -> bool:
    if not all(isinstance(token, int) and 0 <= token < student.vocab_size for token in ids):
        return False
    return ids[-1] in student.eos_ids and student.tokenizer.decode(ids, skip_special_tokens=True) == text


def run_sft(config: SftConfig, *, resume: bool = False) -> Path:
    """Train, and write the student to `out/model`. Returns that folder."""
    if config.threads:
        torch.set_num_threads(config.threads)
    torch.manual_seed(config.seed)
    student = load_student(config.student)
    traces = read_traces(config.traces, student)
    accelerator = Accelerator(log_with=config.trackers or None, project_dir=str(config.out))
    if accelerator.num_processes > 1:
        raise UsageError("sft runs in one process: start it without `accelerate launch`")
    optimizer, scheduler = make_optimizer(student.model, config.optim, config.steps)
    module = CompletionScorer(student.model)
    module, optimizer, scheduler = accelerator.prepare(module, optimizer, scheduler)
    first, found = 0, checkpoint.latest(config.out) if resume else None
    if found is not None:
        first = checkpoint.restore(found, student.model, optimizer, scheduler)
        trim_after(config.out, first)
    about = {
        "kind": "sft",
        "objective": "sft",
        "seed": config.seed,
        "steps": config.steps,
        "student": config.student.path,
    }
    folder = RunFolder(config, about, accelerator, resumed=found is not None)
    order = PromptOrder(len(traces), config.batch, config.seed)
    student.model.train()
    with StopSignal() as stop, progress("SFT on the teacher's traces", config.steps) as live:
        for step in range(first, config.steps):
            started = time.monotonic()
            chosen = [traces[index] for index in order.indices(step)]
            loss = _step(student, module, accelerator, chosen, config.micro)
            norm = accelerator.clip_grad_norm_(module.parameters(), config.optim.max_grad_norm)
            optimizer.step()
            lr = scheduler.get_last_lr()[0]
            scheduler.step()
            optimizer.zero_grad()
            folder.metrics(
                step + 1,
                {"loss": loss, "grad_norm": float(norm), "lr": lr, "time/step": time.monotonic() - started},
            )
            live.update(step + 1, loss=loss)
            due = config.save_every and (step + 1) % config.save_every == 0 and step + 1 < config.steps
            if due or stop.requested:
                checkpoint.save(config.out, step + 1, student.model, optimizer, scheduler)
            if stop.requested:
                folder.close()
                raise SystemExit(143)
    folder.close()
    student.save(config.out / "model")
    return config.out / "model"


def _step(
    student: Student, module: torch.nn.Module, accelerator: Accelerator, traces: Sequence[Trace], micro: int
) -> float:
    """Forward and backward of one step; the mean loss over all completion tokens, nats."""
    tokens = sum(len(trace.ids) for trace in traces)
    total = 0.0
    for indices in micro_batches([len(trace.ids) for trace in traces], micro):
        part = [traces[index] for index in indices]
        batch = make_batch(student, [t.example for t in part], [t.ids for t in part], device=accelerator.device)
        scores = module(batch.inputs, batch.predicts_BS, batch.ids_N)
        loss = -scores.logprobs_N.sum() / tokens
        accelerator.backward(loss)
        total += loss.item()
    return total
