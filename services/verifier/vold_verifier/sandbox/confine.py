"""Confine a process with every layer that the machine allows: `Confinement`.

The available layers depend on where the service runs: a container usually allows no namespaces, an old kernel has no
Landlock. Each layer is independent of the others, and the active layers are named, so that an operator sees them in
ListVerifiers, on the status page and in the log.

    namespaces   of mounts, network, processes and IPC: the files that a Python program reads, read-only, and no others;
                 no network device; no process outside is visible
    other user   if the service runs as root and may change to another user
    landlock     the same files and no others, by a second mechanism that needs no privilege
    seccomp      no network, no file opened for writing, no ptrace, no mounts: see `seccomp`
    always       no new privileges, no capabilities, a closed environment, resource limits
"""

import os
import shutil
import sys
import tempfile
from pathlib import Path

from vold_verifier.sandbox import kernel, landlock, seccomp

NOBODY = 65534
_SYSTEM_PATHS = (
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
_DEVICE_PATHS = ("/dev/null", "/dev/zero", "/dev/urandom", "/dev/random")
_NEW_ROOT = "/proc"
"""Where the new root is built: a directory that every system has and that holds no program files."""
_KEPT_VARIABLES = (
    "PATH",
    "LANG",
    "LC_ALL",
    "LC_CTYPE",
    "TZ",
    "OMP_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "MKL_NUM_THREADS",
)


def closed_environment() -> dict[str, str]:
    """Return the environment of a sandboxed process: no variable of the service's that could hold a secret."""
    kept = {name: os.environ[name] for name in _KEPT_VARIABLES if name in os.environ}
    return {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1", **kept}


def hide_memory() -> None:
    """Keep processes of the same user from reading this process's memory and environment."""
    if sys.platform == "linux":
        kernel.prctl(kernel.PR_SET_DUMPABLE, 0)


def import_paths() -> list[str]:
    """Return what imports read: the entries of `sys.path`, and the packages and modules that editable installs import
    from elsewhere.
    """
    editable: list[str] = []
    for finder in sys.meta_path:
        # setuptools makes such a module for each editable install; its finder is a class, others' are objects.
        mapping = getattr(sys.modules.get(finder.__module__), "MAPPING", None)
        if isinstance(mapping, dict):
            editable += [path if os.path.exists(path) else f"{path}.py" for path in mapping.values()]
    loaded = (module for name, module in tuple(sys.modules.items()) if "." not in name)
    editable += [path for module in loaded for path in _module_paths(module)]
    known = tuple(os.path.join(path, "") for path in (*sys.path, sys.prefix, sys.base_prefix) if path not in ("", "/"))
    return [*sys.path, *(path for path in dict.fromkeys(editable) if not path.startswith(known))]


def _module_paths(module: object) -> list[str]:
    """The folders of a package, or the file of a module."""
    folders = getattr(module, "__path__", None)
    paths = list(folders) if folders is not None else [getattr(module, "__file__", None)]
    return [path for path in paths if isinstance(path, str)]


def readable_paths() -> list[str]:
    """Return the paths that Python programs read: the system's libraries, this interpreter, and the import path."""
    wanted = [*_SYSTEM_PATHS, *_DEVICE_PATHS, sys.prefix, sys.base_prefix, *import_paths()]
    absolute = dict.fromkeys(os.path.abspath(path) for path in wanted if path)
    # `/` is in the import path of a service that was started in / with `python -m`.
    return [path for path in absolute if path != "/" and os.path.exists(path)]


class Confinement:
    """Confines the calling process and every process that it starts, in two steps: first `enter`, then `lock`.

    Trusted code may be imported between the steps. Some libraries write a cache during their import: they get a scratch
    directory, which `lock` removes.
    """

    def __init__(self) -> None:
        self.paths = readable_paths()
        self.was_root = os.geteuid() == 0
        self.privileged: bool | None = None
        self.scratch = ""

    def enter(self) -> None:
        """Enter the namespaces that the machine allows. Call it while the process has one thread.

        With a namespace of processes this method returns in a child, process 1 of the namespace; the kernel ends all
        processes of the namespace with process 1.
        """
        if sys.platform != "linux":
            return
        os.umask(0o022)
        self.privileged = _enter_namespaces()
        if self.privileged is not None:
            _fork_first_process()
            _make_new_root(self.paths)
        self.scratch = tempfile.mkdtemp(prefix="vold-sandbox-")
        for name in ("HOME", "TMPDIR"):
            os.environ[name] = self.scratch
        tempfile.tempdir = None

    def lock(self) -> list[str]:
        """Activate the other layers; return the active layers. Do not process text of a model before this call."""
        if sys.platform != "linux":
            return []
        shutil.rmtree(self.scratch, ignore_errors=True)
        layers: list[str] = []
        if self.privileged is not None:
            kernel.make_read_only("/")
            layers.append("namespaces")
        if self.was_root and self.privileged is not False and _change_user(self.paths):
            layers.append("other user")
        kernel.prctl(kernel.PR_SET_NO_NEW_PRIVS, 1)
        kernel.drop_capabilities()
        layers.append("no privileges")
        try:
            layers.append(f"landlock {landlock.allow_reading_only(_resolve(self.paths))}")
        except OSError as error:
            _log(f"no landlock: {error}")
        try:
            seccomp.refuse_network_and_writes()
            layers.append("seccomp")
        except seccomp.SeccompError as error:
            _log(f"no seccomp: {error}")
        kernel.die_with_parent()
        return layers


def _log(text: str) -> None:
    sys.stderr.write(f"sandbox: {text}\n")


def _enter_namespaces() -> bool | None:
    """Return whether root's privilege (True) or a user namespace (False) allowed the namespaces; None without them."""
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
        _log(f"no namespaces: {error}")
        return None


def _fork_first_process() -> None:
    """Fork, and return in the child, which is process 1 of the new namespace. The parent ends with the child."""
    child = os.fork()
    if child:
        os.closerange(3, os.sysconf("SC_OPEN_MAX") if os.sysconf("SC_OPEN_MAX") < 1 << 16 else 1 << 16)
        _, status = os.waitpid(child, 0)
        os._exit(os.waitstatus_to_exitcode(status) & 0xFF)
    kernel.die_with_parent()


def _make_new_root(paths: list[str]) -> None:
    """Replace the root by one that holds only `paths` and an empty /tmp."""
    kernel.mount(None, "/", None, kernel.MS_REC | kernel.MS_PRIVATE)
    kernel.mount("tmpfs", _NEW_ROOT, "tmpfs", kernel.MS_NOSUID | kernel.MS_NODEV, "size=16m,mode=755")
    bound: list[str] = []
    for real in _resolve(paths):
        if not any(real == parent or real.startswith(parent + "/") for parent in bound):
            target = _NEW_ROOT + real
            if os.path.isdir(real):
                os.makedirs(target, exist_ok=True)
            else:
                os.makedirs(os.path.dirname(target), exist_ok=True)
                Path(target).touch()
            kernel.mount(real, target, None, kernel.MS_BIND | kernel.MS_REC)
            bound.append(real)
    for path in paths:
        target = _NEW_ROOT + path
        if os.path.realpath(path) != path and not os.path.lexists(target):
            os.makedirs(os.path.dirname(target), exist_ok=True)
            os.symlink(os.path.realpath(path), target)
    os.makedirs(_NEW_ROOT + "/tmp", exist_ok=True)  # noqa: S108
    os.chdir(_NEW_ROOT)
    kernel.pivot_root_here()


def _resolve(paths: list[str]) -> list[str]:
    """Resolve symbolic links; parent folders come before their contents."""
    return sorted({os.path.realpath(path) for path in paths}, key=lambda path: (path.count("/"), path))


def _change_user(paths: list[str]) -> bool:
    """Change to user `NOBODY`; return False and stay root if that user cannot read `paths`."""
    try:
        os.setgroups([])
        os.setresgid(NOBODY, NOBODY, NOBODY)
        os.seteuid(NOBODY)
        unreadable = next((path for path in paths if not os.access(path, os.R_OK, effective_ids=True)), None)
        if unreadable is not None:
            os.seteuid(0)
            _log(f"the sandbox stays root: user {NOBODY} may not read {unreadable}")
            return False
        os.seteuid(0)
        os.setresuid(NOBODY, NOBODY, NOBODY)
        return True
    except OSError as error:
        _log(f"the sandbox stays root: {error}")
        return False
