"""The pocket world: arithmetic problems small enough for two CPU cores, as text and as pictures, with checkpoints.

`problems`, `world` and `chains` need reasoning-gym, so they are not imported here.
"""

from vold_trainer.pocket.shipped import checkpoint_path, resolve_model

__all__ = ["checkpoint_path", "resolve_model"]
