"""What an error leaves of a run: the last whole step is saved before the run ends, whatever the error is.

The weights are those of a whole step except within an update, between its first optimiser step and its last. An error
there leaves the newest checkpoint, and says which step that is.
"""

import copy
import gc
import logging
import traceback
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors import SafetensorError
from vold_client import VoldError

from vold_trainer.errors import DivergedError, RunError, VoldTrainerError
from vold_trainer.processes.ranks import Ranks
from vold_trainer.processes.wrapping import PreparedModel
from vold_trainer.runs.checkpoint import latest_checkpoint

log = logging.getLogger("vold.runs")


def ended_run(
    error: Exception,
    *,
    step: int,
    out: Path,
    prepared: PreparedModel,
    ranks: Ranks,
    save: Callable[[], object],
) -> Exception:
    """Save the state after `step` whole steps if it is still there, and return the error that is to end the run: it
    says what is saved. An error that no user can mend is returned as it is, with a note.

    save: writes the checkpoint, on all processes together.
    """
    traceback.clear_frames(error.__traceback__)  # their tensors: memory may be what has run out
    together = ranks.all_have(error)
    if not together:
        ranks.announce_failure(error)
    saved = _save(error, step, out, prepared, ranks, save, together=together)
    message = f"{_said(error)}. {saved}"
    if isinstance(error, VoldTrainerError):
        ended: Exception = copy.copy(error)
        ended.args = (message,)
    elif isinstance(error, VoldError | OSError | SafetensorError) or is_out_of_memory(error):
        ended = RunError(message)
    else:
        error.add_note(saved)
        return error
    ended.__cause__ = error
    return ended


def _save(
    error: Exception,
    step: int,
    out: Path,
    prepared: PreparedModel,
    ranks: Ranks,
    save: Callable[[], object],
    *,
    together: bool,
) -> str:
    """Save if possible. Returns a sentence about what there is to go on from."""
    if prepared.mid_update:
        return f"It came within the update of step {step + 1}, which is lost. {_newest(out)}"
    if not together and (not ranks.is_main or prepared.lock_step):
        return f"The processes cannot save together any more. {_newest(out)}"
    if isinstance(error, DivergedError):
        return f"Its weights are not saved. {_newest(out)}; add --step for an earlier one"
    prepared.free_gradients()
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    try:
        if together:
            save()
        else:  # every process has all weights, and the main one is still there
            with ranks.alone():
                save()
    except Exception as failure:
        log.debug("saving failed", exc_info=True)
        return f"Saving the student after step {step} failed too ({_said(failure)}). {_newest(out)}"
    return (
        f"The student after step {step} is saved: once that is mended, the same command goes on from there with "
        "--resume"
    )


def _newest(out: Path) -> str:
    checkpoint = latest_checkpoint(out)
    if checkpoint is None:
        return "There is no checkpoint yet: the run has to start over"
    return f"The newest checkpoint is of step {checkpoint.step}: the same command goes on from there with --resume"


def is_out_of_memory(error: BaseException) -> bool:
    """Whether a device or this process had no memory left. torch raises a RuntimeError for the CPU's."""
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or (
        isinstance(error, RuntimeError) and "can't allocate memory" in str(error)
    )


def _said(error: Exception) -> str:
    if is_out_of_memory(error):
        first = str(error).partition("\n")[0] or type(error).__name__
        return f"out of memory: {first} (lower batch.micro, rollout.batch or rollout.max_tokens)"
    text = str(error).rstrip(".")
    return text if isinstance(error, VoldTrainerError | VoldError) else f"{type(error).__name__}: {text}"
