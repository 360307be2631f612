"""The checkpoints that ship with the pocket world, and models by name: `pocket:NAME` is one of them."""

from pathlib import Path

from vold_trainer.errors import UsageError

CHECKPOINTS = Path(__file__).parent / "checkpoints"
CHECKPOINT_NAMES = ("teacher", "teacher-b", "student")


def checkpoint_path(name: str) -> Path:
    """The folder of a checkpoint that ships with the package: teacher, teacher-b or student.

    Raises ValueError for another name, FileNotFoundError when the folder has not been built.
    """
    if name not in CHECKPOINT_NAMES:
        raise ValueError(f"checkpoint={name!r} is unknown; choose one of {', '.join(CHECKPOINT_NAMES)}")
    path = CHECKPOINTS / name
    if not (path / "config.json").exists():
        raise FileNotFoundError(f"{path} holds no checkpoint; build it with `vold pocket build`")
    return path


def resolve_model(path: str) -> str:
    """A folder or hub name; `pocket:NAME` becomes the folder of a checkpoint that ships with vold."""
    if path.startswith("pocket:"):
        name = path.removeprefix("pocket:")
        try:
            return str(checkpoint_path(name))
        except (KeyError, FileNotFoundError, ValueError) as error:
            raise UsageError(f"model {path!r}: there is no pocket checkpoint {name!r} ({error})") from error
    return path
