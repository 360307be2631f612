"""Which process of a launch this is, as `accelerate launch` and `torchrun` say in the environment. Needs no torch."""

import os
import sys


def speaks() -> bool:
    """Whether this process is a run's first, or its only one."""
    return os.environ.get("RANK", "0") == "0"


def first_here() -> bool:
    """Whether this process is the first one of its machine."""
    return os.environ.get("LOCAL_RANK", "0") == "0"


def machine() -> str:
    """Which of the launched machines this is."""
    return os.environ.get("GROUP_RANK", "0")


def connected() -> bool:
    """Whether the processes of the launch have met."""
    torch = sys.modules.get("torch")
    return bool(torch is not None and torch.distributed.is_available() and torch.distributed.is_initialized())
