"""The pocket world: arithmetic small enough for two CPU cores, as text and as pictures, with the checkpoints that ship.

Problems bring reasoning-gym with them: `problems`, `world` and `chains` are imported by name.
"""

from vold_trainer.pocket.shipped import checkpoint_path, resolve_model

__all__ = ["checkpoint_path", "resolve_model"]
