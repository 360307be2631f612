"""The distribution `vold` that every package here is installed with: its version, and its extras.

All of its code is always installed, and only some of what that code imports. Where a package is missing, `needs` says
which extra brings it. An import that fails inside an installed package is another matter, and stays what it is.
"""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.metadata import version

VERSION = version("vold")

PACKAGES = frozenset({"vold_client", "vold_proto", "vold_service", "vold_teacher", "vold_trainer", "vold_verifier"})


class MissingExtraError(ImportError):
    """An extra of vold is not installed; the message names it."""


class UnfitError(OSError):
    """An installed package differs from those that this code is made for; the message says what to install."""


def advice(what: str, package: str, extra: str, otherwise: str = "") -> str:
    """What to tell a user where `what` needs `package`. otherwise: how to do without, where that is possible."""
    remedy = f"install vold with the extra {extra!r} (docs/install.md)" + (f", or {otherwise}" if otherwise else "")
    return f"{what} needs {package}, which is not installed: {remedy}"


@contextmanager
def needs(
    extra: str, what: str, raises: Callable[[str], Exception] = MissingExtraError, otherwise: str = ""
) -> Iterator[None]:
    """A block that imports packages of `extra`. Raises what `raises` makes of the advice where one is not installed."""
    try:
        yield
    except ModuleNotFoundError as error:
        if not _not_installed(error):
            raise
        raise raises(advice(what, error.name or "a package", extra, otherwise)) from error


@contextmanager
def program(name: str, extra: str) -> Iterator[None]:
    """The block that a program runs in: without the program's extra it ends with one line on stderr and status 1. What
    version it is, it says without any extra.
    """
    if sys.argv[1:] == ["--version"]:
        sys.stdout.write(f"{name} {VERSION}\n")
        sys.exit()
    try:
        with needs(extra, name):
            yield
    except MissingExtraError as error:
        sys.exit(f"error: {error}")


def _not_installed(error: ModuleNotFoundError) -> bool:
    """Whether the import stands in code of vold and names a package of others. Where it stands in an installed package,
    that package is broken, or was installed without its own dependencies."""
    traceback, importer = error.__traceback__, ""
    while traceback is not None:
        package = (traceback.tb_frame.f_globals.get("__package__") or "").partition(".")[0]
        if package != "importlib":
            importer = package
        traceback = traceback.tb_next
    return importer in PACKAGES and (error.name or "").partition(".")[0] not in PACKAGES
