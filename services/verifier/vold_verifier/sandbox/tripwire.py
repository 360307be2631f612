"""An audit hook that detects what no verifier does: starting programs, opening sockets, writing files.

The hook is a tripwire, not a wall: code that knows of the hook can avoid it. The walls are those of `confine`. An
action that hits the tripwire fails at once, and the worker is replaced after the item.
"""

import os
import sys
from importlib.util import cache_from_source
from typing import Any

from vold_verifier.sandbox.confine import import_paths

_PREFIXES = (
    "ctypes.",
    "ftplib.",
    "http.client.",
    "imaplib.",
    "nntplib.",
    "os.exec",
    "os.spawn",
    "poplib.",
    "pty.",
    "shutil.",
    "smtplib.",
    "socket.",
    "sqlite3.",
    "telnetlib.",
    "tempfile.",
    "urllib.",
    "webbrowser.",
)
_EVENTS = frozenset(
    (
        *("builtins.breakpoint", "builtins.input", "code.__new__", "fcntl.fcntl", "fcntl.flock", "fcntl.ioctl"),
        *("gc.get_objects", "gc.get_referents", "gc.get_referrers", "mmap.__new__", "subprocess.Popen"),
        *("os.chdir", "os.chmod", "os.chown", "os.fork", "os.forkpty", "os.kill", "os.killpg", "os.link", "os.mkdir"),
        *("os.posix_spawn", "os.putenv", "os.remove", "os.rename", "os.rmdir", "os.symlink", "os.system"),
        *("os.truncate", "os.unsetenv", "os.utime", "os.setxattr", "os.removexattr"),
        *("signal.pthread_kill", "sys.addaudithook", "sys.setprofile", "sys.settrace", "syslog.openlog"),
    )
)
_WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND


class TripwireError(BaseException):
    """event: the audit event. Not an Exception, so that an `except Exception` in a library does not swallow it."""

    def __init__(self, event: str) -> None:
        super().__init__(event)
        self.event = event


class Tripwire:
    """armed: whether events are watched. hit: the first audit event that hit the tripwire, "" before."""

    def __init__(self) -> None:
        self.armed = False
        self.hit = ""
        self.readable: tuple[str, ...] = ()

    def install(self) -> None:
        """Add the audit hook. While armed, it allows reading only what an import may read: installed packages."""
        paths = [os.path.abspath(path) for path in import_paths() if path not in ("", "/")]
        files = [path for path in paths if path.endswith(".py")]
        folders = [os.path.join(path, "") for path in paths if path not in files]
        # The bytecode of a module is tried even if it is not there.
        self.readable = (*folders, *files, *map(cache_from_source, files))
        sys.dont_write_bytecode = True  # otherwise an import of a package without bytecode would write it
        sys.addaudithook(self._hook)

    def _hook(self, event: str, arguments: tuple[Any, ...]) -> None:
        if self.armed and self._suspicious(event, arguments):
            self.hit = self.hit or event
            raise TripwireError(event)

    def _suspicious(self, event: str, arguments: tuple[Any, ...]) -> bool:
        if event != "open":
            return event in _EVENTS or event.startswith(_PREFIXES)
        path, mode, flags = arguments
        if isinstance(mode, str) and any(letter in mode for letter in "wax+"):
            return True
        if isinstance(flags, int) and flags & _WRITING:
            return True
        return not (isinstance(path, str) and os.path.normpath(path).startswith(self.readable))
