"""torch for objectives, imported at the first use of it:

    from vold_trainer.objectives.lazy import Tensor, torch

A config names an objective and its options. To read it takes a tenth of a second, and to import torch takes seconds: a
mistake in a config is told without torch, because no objective needs it before it computes. What runs while the module
is imported, as `@torch.no_grad()` over a function does, would import it: write `with torch.no_grad():` inside.
An objective that imports torch itself works as well; every command is then slower to start.
"""

from typing import TYPE_CHECKING, Any

__all__ = ["Tensor", "torch"]

if TYPE_CHECKING:  # for mypy and editors the names are torch's own
    import torch
    from torch import Tensor
else:

    class _Torch:
        def __getattr__(self, name: str) -> Any:
            import torch

            return getattr(torch, name)

    torch = _Torch()
    Tensor = Any  # of annotations alone
