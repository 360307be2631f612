"""`vold ...` under FSDP2 on the CPU, which accelerate offers on accelerators only: torch itself shards over gloo too.

FSDP_VERSION=2 torchrun --nproc-per-node 2 fsdp_on_cpu.py train CONFIG ...
"""

import os

import torch
from accelerate.state import PartialState
from accelerate.utils import DistributedType
from vold_trainer.cli import main

os.environ |= {
    "ACCELERATE_TORCH_DEVICE": "cpu",
    "ACCELERATE_USE_FSDP": "true",
    "FSDP_VERSION": "2",
    "FSDP_AUTO_WRAP_POLICY": "TRANSFORMER_BASED_WRAP",
    "FSDP_RESHARD_AFTER_FORWARD": "true",
}
torch.accelerator.is_available = lambda: True
PartialState._prepare_backend = lambda self, *args, **kwargs: ("gloo", DistributedType.MULTI_GPU)

if __name__ == "__main__":
    main()
