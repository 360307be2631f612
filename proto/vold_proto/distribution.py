"""The distribution `vold`: its version, and its extras.

The distribution installs all packages of vold, but not all of their dependencies. If a dependency is missing,
`require_extra` raises an error with the name of the extra that installs it. An import that fails inside an installed
dependency keeps its own error.
"""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, version

try:
    VERSION = version("vold")
except PackageNotFoundError:  # run from a checkout that is on PYTHONPATH, as `make test-gpu PYTHON=...` does
    VERSION = "0+checkout"

PACKAGES = frozenset({"vold_client", "vold_proto", "vold_service", "vold_teacher", "vold_trainer", "vold_verifier"})


class MissingExtraError(ImportError):
    """An extra of vold is not installed. The message names the extra."""


class IncompatibleVersionError(OSError):
    """The installed version of a package does not work with this code. The message says which to install."""


def missing_extra_message(feature: str, package: str, extra: str, otherwise: str = "") -> str:
    """The error message if `feature` needs `package`. otherwise: how to do without it, if possible."""
    remedy = f"install vold with the extra {extra!r} (docs/install.md)" + (f", or {otherwise}" if otherwise else "")
    return f"{feature} needs {package}, which is not installed: {remedy}"


@contextmanager
def require_extra(
    extra: str, feature: str, raises: Callable[[str], Exception] = MissingExtraError, otherwise: str = ""
) -> Iterator[None]:
    """A block that imports packages of `extra`. If a package is missing, raises `raises(message)`.

    feature: named in the message. otherwise: how to do without it, if possible.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        if not _not_installed(error):
            raise
        raise raises(missing_extra_message(feature, error.name or "a package", extra, otherwise)) from error


@contextmanager
def exit_without_extra(name: str, extra: str) -> Iterator[None]:
    """The block of a program. If a package of `extra` is missing, exit with one line on stderr and status 1.

    `--version` works without the extra.
    """
    if sys.argv[1:] == ["--version"]:
        sys.stdout.write(f"{name} {VERSION}\n")
        sys.exit()
    try:
        with require_extra(extra, name):
            yield
    except MissingExtraError as error:
        sys.exit(f"error: {error}")


def _not_installed(error: ModuleNotFoundError) -> bool:
    """Whether the failed import is in code of vold and names another distribution's package.

    An import that fails in an installed package means that the package is broken or lacks its own dependencies.
    """
    traceback, importer = error.__traceback__, ""
    while traceback is not None:
        package = (traceback.tb_frame.f_globals.get("__package__") or "").partition(".")[0]
        if package != "importlib":
            importer = package
        traceback = traceback.tb_next
    return importer in PACKAGES and (error.name or "").partition(".")[0] not in PACKAGES
