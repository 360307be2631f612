"""`vold ...` under FSDP2 or DeepSpeed on the CPU, which accelerate offers on accelerators only, though both run there.

ACCELERATE_USE_FSDP=true FSDP_VERSION=2 torchrun --nproc-per-node 2 spread_on_cpu.py train CONFIG ...
"""

import os

import torch
from accelerate.state import PartialState
from accelerate.utils import DistributedType
from vold_trainer.cli import main

os.environ |= {"ACCELERATE_TORCH_DEVICE": "cpu", "DS_ACCELERATOR": "cpu"}
torch.accelerator.is_available = lambda: True
PartialState._prepare_backend = lambda self, *args, **kwargs: ("gloo", DistributedType.MULTI_GPU)

if __name__ == "__main__":
    main()
