"""Batch-invariant matrix products: a row of a product is the same to the last bit whatever other rows there are.

MKL, the library of torch's products on x86 CPUs, picks another kernel for few rows, and splits a product otherwise for
other numbers of rows and threads. Both change the order in which it adds. Its strict mode of conditional numerical
reproducibility (`MKL_CBWR`, in Intel's guide "Obtaining Numerically Reproducible Results") keeps one order. Other
libraries have no such mode: `products_vary` shows what a process has.
"""

import os
from typing import Any

import torch
from torch.nn.functional import linear

ROWS = (1, 2, 5, 16, 63, 192)
"""Numbers of rows to compare, across the kernels that MKL has for few rows and many."""
MOST = 384


def make_products_invariant() -> None:
    """Ask MKL for its strict mode, unless the environment sets another. To be called before the first product of the
    process: MKL reads its environment once.
    """
    os.environ.setdefault("MKL_CBWR", "AUTO,STRICT")


@torch.inference_mode()
def products_vary(model: Any) -> str | None:
    """What is found to vary in products with the model's weights, as a clause; None if nothing does."""
    if model.dtype != torch.float32:
        return f"products in {str(model.dtype).removeprefix('torch.')} are not known to be without: use --dtype float32"
    generator = torch.Generator().manual_seed(0)
    seen = set()
    for module in model.modules():
        if not isinstance(module, torch.nn.Linear) or module.weight.shape in seen:
            continue
        seen.add(module.weight.shape)
        x_RH = torch.randn(MOST, module.in_features, generator=generator)
        whole = linear(x_RH, module.weight)
        for rows in ROWS:
            if not torch.equal(linear(x_RH[-rows:], module.weight), whole[-rows:]):
                return (
                    f"products of {rows} rows differ from products of {MOST}: this needs MKL, on a CPU that has its "
                    "strict mode, and MKL_CBWR=AUTO,STRICT in the environment of the process"
                )
    return None
