"""Shut a process in, as far as the machine lets it: `Confinement`.

What is reached depends on where the service runs: a container usually grants no namespaces, an old kernel has no
Landlock. Each layer stands by itself, and the ones that hold are named, so that an operator can see them in
ListVerifiers, on the status page and in the log.

    namespaces   of mounts, network, processes and IPC: only what a Python program reads is there, all of it read-only;
                 no network device is up; no process outside can be seen
    other user   where the service runs as root and may change to another
    landlock     the same files and no others, by a second mechanism that needs no privilege
    seccomp      no network, no file opened for writing, no ptrace, no mounts: see `seccomp`
    no new privileges, no capabilities, a closed environment, resource limits: always
"""

import os
import shutil
import sys
import tempfile
from pathlib import Path

from vold_verifier.sandbox import kernel, landlock, seccomp

NOBODY = 65534
_SYSTEM = (
    "/usr",
    "/lib",
    "/lib32",
    "/lib64",
    "/bin",
    "/etc/ld.so.cache",
    "/etc/localtime",
    "/etc/alternatives",
    "/etc/fonts",
)
_DEVICES = ("/dev/null", "/dev/zero", "/dev/urandom", "/dev/random")
_STAGE = "/proc"
"""Where the new root is put together: a directory that every system has and that no program file lies in."""
_PASSED_ON = ("PATH", "LANG", "LC_ALL", "LC_CTYPE", "TZ", "OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")


def closed_environment() -> dict[str, str]:
    """What a sandboxed process gets to see of the service's environment: nothing that could hold a secret."""
    kept = {name: os.environ[name] for name in _PASSED_ON if name in os.environ}
    return {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1", **kept}


def hide_memory() -> None:
    """The calling process's memory and environment are no longer for processes of the same user to read."""
    if sys.platform == "linux":
        kernel.prctl(kernel.PR_SET_DUMPABLE, 0)


def readable_paths() -> list[str]:
    """What Python programs need to read: the system's libraries, this interpreter, and the import path."""
    wanted = [*_SYSTEM, *_DEVICES, sys.prefix, sys.base_prefix, *sys.path]
    absolute = dict.fromkeys(os.path.abspath(path) for path in wanted if path)
    # A service started in / with `python -m` has that in its import path.
    return [path for path in absolute if path != "/" and os.path.exists(path)]


class Confinement:
    """Of the calling process and all it will start, in two steps: first `enter`, then `lock`.

    Between them trusted code may be imported, for some libraries want to write a cache while they are: they find a
    scratch directory, which is gone after.
    """

    def __init__(self) -> None:
        self.paths = readable_paths()
        self.was_root = os.geteuid() == 0
        self.privileged: bool | None = None
        self.scratch = ""

    def enter(self) -> None:
        """Call it while the process has one thread. With a namespace of processes the caller goes on as its first
        process, in a child of the one that called; when that one ends, the kernel ends all of them.
        """
        if sys.platform != "linux":
            return
        os.umask(0o022)
        self.privileged = _namespaces()
        if self.privileged is not None:
            _become_first_process()
            _new_root(self.paths)
        self.scratch = tempfile.mkdtemp(prefix="vold-sandbox-")
        for name in ("HOME", "TMPDIR"):
            os.environ[name] = self.scratch
        tempfile.tempdir = None

    def lock(self) -> list[str]:
        """Returns the layers that hold. Before it no text that a model wrote may be looked at."""
        if sys.platform != "linux":
            return []
        shutil.rmtree(self.scratch, ignore_errors=True)
        layers: list[str] = []
        if self.privileged is not None:
            kernel.make_read_only("/")
            layers.append("namespaces")
        if self.was_root and self.privileged is not False and _become_nobody(self.paths):
            layers.append("other user")
        kernel.prctl(kernel.PR_SET_NO_NEW_PRIVS, 1)
        kernel.drop_capabilities()
        layers.append("no privileges")
        try:
            layers.append(f"landlock {landlock.allow_reading_only(_real(self.paths))}")
        except OSError as error:
            _say(f"no landlock: {error}")
        try:
            seccomp.refuse_network_and_writes()
            layers.append("seccomp")
        except seccomp.SeccompError as error:
            _say(f"no seccomp: {error}")
        kernel.die_with_parent()
        return layers


def _say(text: str) -> None:
    sys.stderr.write(f"sandbox: {text}\n")


def _namespaces() -> bool | None:
    """Whether they were made by the right of root (True) or of a namespace of users (False); None: there are none."""
    kinds = kernel.CLONE_NEWNS | kernel.CLONE_NEWNET | kernel.CLONE_NEWPID | kernel.CLONE_NEWIPC | kernel.CLONE_NEWUTS
    user, group = os.geteuid(), os.getegid()
    try:
        kernel.unshare(kinds)
        return True
    except OSError:
        pass
    try:
        kernel.unshare(kinds | kernel.CLONE_NEWUSER)
        Path("/proc/self/setgroups").write_text("deny")
        Path("/proc/self/uid_map").write_text(f"{user} {user} 1")
        Path("/proc/self/gid_map").write_text(f"{group} {group} 1")
        return False
    except OSError as error:
        _say(f"no namespaces: {error}")
        return None


def _become_first_process() -> None:
    """Fork: the child is process 1 of the new namespace and returns; the parent waits for it and ends with it."""
    child = os.fork()
    if child:
        os.closerange(3, os.sysconf("SC_OPEN_MAX") if os.sysconf("SC_OPEN_MAX") < 1 << 16 else 1 << 16)
        _, status = os.waitpid(child, 0)
        os._exit(os.waitstatus_to_exitcode(status) & 0xFF)
    kernel.die_with_parent()


def _new_root(paths: list[str]) -> None:
    """A root with nothing but `paths`, and a /tmp of its own."""
    kernel.mount(None, "/", None, kernel.MS_REC | kernel.MS_PRIVATE)
    kernel.mount("tmpfs", _STAGE, "tmpfs", kernel.MS_NOSUID | kernel.MS_NODEV, "size=16m,mode=755")
    bound: list[str] = []
    for real in _real(paths):
        if not any(real == one or real.startswith(one + "/") for one in bound):
            target = _STAGE + real
            if os.path.isdir(real):
                os.makedirs(target, exist_ok=True)
            else:
                os.makedirs(os.path.dirname(target), exist_ok=True)
                Path(target).touch()
            kernel.mount(real, target, None, kernel.MS_BIND | kernel.MS_REC)
            bound.append(real)
    for path in paths:
        target = _STAGE + path
        if os.path.realpath(path) != path and not os.path.lexists(target):
            os.makedirs(os.path.dirname(target), exist_ok=True)
            os.symlink(os.path.realpath(path), target)
    os.makedirs(_STAGE + "/tmp", exist_ok=True)  # noqa: S108
    os.chdir(_STAGE)
    kernel.pivot_root_here()


def _real(paths: list[str]) -> list[str]:
    """Without symbolic links, the ones that hold others first."""
    return sorted({os.path.realpath(path) for path in paths}, key=lambda path: (path.count("/"), path))


def _become_nobody(paths: list[str]) -> bool:
    """Whether the process is another user now. It stays root where that user could not read the program."""
    try:
        os.setgroups([])
        os.setresgid(NOBODY, NOBODY, NOBODY)
        os.seteuid(NOBODY)
        unreadable = next((path for path in paths if not os.access(path, os.R_OK, effective_ids=True)), None)
        if unreadable is not None:
            os.seteuid(0)
            _say(f"it stays root: user {NOBODY} may not read {unreadable}")
            return False
        os.seteuid(0)
        os.setresuid(NOBODY, NOBODY, NOBODY)
        return True
    except OSError as error:
        _say(f"it stays root: {error}")
        return False
