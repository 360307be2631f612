"""The checkpoints that ship with the pocket world; `pocket:NAME` names one of them."""

from pathlib import Path

from vold_trainer.errors import UsageError

CHECKPOINTS = Path(__file__).parent / "checkpoints"
CHECKPOINT_NAMES = ("teacher", "teacher-b", "student")


def checkpoint_path(name: str) -> Path:
    """The folder of a shipped checkpoint: teacher, teacher-b or student.

    Raises ValueError for any other name, FileNotFoundError if the checkpoint has not been built.
    """
    if name not in CHECKPOINT_NAMES:
        raise ValueError(f"checkpoint={name!r} is unknown; choose one of {', '.join(CHECKPOINT_NAMES)}")
    path = CHECKPOINTS / name
    if not (path / "config.json").exists():
        raise FileNotFoundError(f"{path} holds no checkpoint; build it with `vold pocket build`")
    return path


def resolve_model(path: str) -> str:
    """Replace `pocket:NAME` by the folder of that shipped checkpoint; return any other folder or hub name unchanged.

    Raises UsageError if there is no such checkpoint.
    """
    if path.startswith("pocket:"):
        name = path.removeprefix("pocket:")
        try:
            return str(checkpoint_path(name))
        except (KeyError, FileNotFoundError, ValueError) as error:
            raise UsageError(f"model {path!r}: there is no pocket checkpoint {name!r} ({error})") from error
    return path
