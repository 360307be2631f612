"""Lets torchvision import beside a torch for CPUs: found by Python itself where PYTHONPATH names this folder.

SGLang imports torchvision, whose operators on the package index are built for CUDA. It looks for the schemas of two of
them; nothing here calls them.
"""

import torch

for name in ("nms", "qnms"):
    torch.library.define(f"torchvision::{name}", "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
