"""The rank of this process, from the environment of `accelerate launch` and `torchrun`. Needs no torch."""

import os
import sys


def is_main_process() -> bool:
    """Whether this process is the main process of the run, or the only one."""
    return os.environ.get("RANK", "0") == "0"


def is_local_main_process() -> bool:
    """Whether this process is the main process of its machine."""
    return os.environ.get("LOCAL_RANK", "0") == "0"


def machine_rank() -> str:
    """The rank of this machine in the launch."""
    return os.environ.get("GROUP_RANK", "0")


def processes_connected() -> bool:
    """Whether torch.distributed has connected the processes."""
    torch = sys.modules.get("torch")
    return bool(torch is not None and torch.distributed.is_available() and torch.distributed.is_initialized())
