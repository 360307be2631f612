"""Paths that a config names, and the errors where nothing is at the path: the field, the value and the remedy."""

import os
import re
from pathlib import Path
from urllib.parse import unquote

from vold_trainer.errors import UsageError


def is_evident_path(name: str) -> bool:
    """Whether the name of a model can only be a path. A name of the hub is NAME or OWNER/NAME."""
    return not name or name.startswith((".", "/", "~")) or name.count("/") > 1 or Path(name).exists()


def why_no_path(path: str) -> str:
    """What in the form of a path keeps it from being one here, and the remedy; "" if nothing does."""
    if path.startswith("~"):
        return "~ has no meaning in a config: write the whole path"
    if path.startswith("file:"):  # of which Path makes file:/ whatever follows
        plain = re.sub("^file:/*", "/", unquote(path))
        return f"it is a URL, and a path is wanted: write {plain!r}"
    return ""


def require_model_folder(path: str, said: str, others: str) -> None:
    """Raise UsageError if `path` is not a folder with a model of transformers.

    said: the field and the value that name the path, for the error. others: what the field may name besides.
    """
    folder = Path(path)
    if not folder.exists() and (why := why_no_path(path)):
        raise UsageError(f"{said}: {why}")
    if not path or not folder.exists():
        raise UsageError(f"{said}: there is no model folder {path!r}: give a folder that exists, or {others}")
    if not folder.is_dir():
        raise UsageError(f"{said} is a file: give the folder that it is in")
    if not (folder / "config.json").is_file():
        if (folder / "adapter_config.json").is_file():
            raise UsageError(
                f"{said} holds an adapter and no model: merge it into its base model (`vold export` does so with a "
                "run's, merge_and_unload of peft with any other), and give the folder of what comes out"
            )
        inner = folder / "model"  # of a run's folder
        hint = f": give its folder {str(inner)!r}" if (inner / "config.json").is_file() else ""
        raise UsageError(f"{said} is no model folder: there is no config.json in it{hint}")


def require_file(path: Path, field: str, remedy: str) -> None:
    """Raise UsageError if there is no file that can be read at `path`."""
    if not path.is_file():
        fault = "is a folder" if path.is_dir() else "does not exist"
        raise UsageError(f"{field} {str(path)!r} {fault}: {why_no_path(str(path)) or remedy}")
    if not os.access(path, os.R_OK):
        raise UsageError(f"{field} {str(path)!r} cannot be read: change its permissions, or give another file")


def require_folder(path: Path, field: str, remedy: str) -> None:
    """Raise UsageError if there is no folder at `path`."""
    if not path.is_dir():
        fault = "is a file" if path.exists() else "does not exist"
        raise UsageError(f"{field} {str(path)!r} {fault}: {why_no_path(str(path)) or remedy}")


def require_writable(folder: Path, field: str, value: Path) -> None:
    """Raise UsageError if `folder`, which need not exist yet, cannot be written to. value: what the field names."""
    nearest = nearest_folder(folder)
    if not nearest.is_dir():
        raise UsageError(f"{field} {str(value)!r}: {str(nearest)!r} is no folder: name another place")
    if not os.access(nearest, os.W_OK | os.X_OK):
        raise UsageError(f"{field} {str(value)!r}: nothing can be written to {str(nearest)!r}: name another place")


def nearest_folder(folder: Path) -> Path:
    """The folder itself, or the nearest above it that exists; it may be no folder."""
    return next(path for path in (folder, *folder.absolute().parents) if path.exists() or path.is_symlink())
