"""System calls that Python's `os` lacks. Linux only; each raises OSError."""

import contextlib
import ctypes
import os
import platform
import signal

CLONE_NEWNS = 0x00020000
CLONE_NEWUTS = 0x04000000
CLONE_NEWIPC = 0x08000000
CLONE_NEWUSER = 0x10000000
CLONE_NEWPID = 0x20000000
CLONE_NEWNET = 0x40000000

MS_NOSUID, MS_NODEV, MS_BIND, MS_REC, MS_PRIVATE = 2, 4, 4096, 16384, 1 << 18
MNT_DETACH = 2

PR_SET_PDEATHSIG, PR_SET_DUMPABLE, PR_CAPBSET_DROP, PR_SET_NO_NEW_PRIVS = 1, 4, 24, 38

_MOUNT_SETATTR = 442  # from 424 on, a call has the same number on every architecture
_PIVOT_ROOT = {"x86_64": 155, "aarch64": 41}
_CAPSET = {"x86_64": 126, "aarch64": 91}
_AT_FDCWD, _AT_RECURSIVE = -100, 0x8000
_MOUNT_ATTR_RDONLY, _MOUNT_ATTR_NOSUID = 1, 2
_CAPABILITY_VERSION_3 = 0x20080522

_libc = ctypes.CDLL(None, use_errno=True)


class _MountAttr(ctypes.Structure):
    _fields_ = [(name, ctypes.c_uint64) for name in ("attr_set", "attr_clr", "propagation", "userns_fd")]


def _check(result: int, description: str) -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{description}: {os.strerror(number)}")
    return result


def syscall(number: int, *arguments: object, description: str) -> int:
    return _check(_libc.syscall(ctypes.c_long(number), *arguments), description)


def prctl(option: int, argument: int) -> None:
    zero = ctypes.c_ulong(0)
    _check(_libc.prctl(option, ctypes.c_ulong(argument), zero, zero, zero), f"prctl {option}")


def die_with_parent() -> None:
    """Have the kernel send SIGKILL when the parent ends. A change of user resets this: call it again afterwards."""
    prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def unshare(flags: int) -> None:
    _check(_libc.unshare(flags), "unshare")


def mount(source: str | None, target: str, kind: str | None, flags: int, options: str | None = None) -> None:
    strings = [None if string is None else os.fsencode(string) for string in (source, target, kind)]
    data = None if options is None else options.encode()
    _check(_libc.mount(*strings, ctypes.c_ulong(flags), data), f"mount {target}")


def make_read_only(path: str) -> None:
    """Make all mounts under `path` read-only. Linux 5.12 or newer."""
    attributes = _MountAttr(attr_set=_MOUNT_ATTR_RDONLY | _MOUNT_ATTR_NOSUID)
    size = ctypes.c_size_t(ctypes.sizeof(attributes))
    at = (_AT_FDCWD, os.fsencode(path), _AT_RECURSIVE)
    syscall(_MOUNT_SETATTR, *at, ctypes.byref(attributes), size, description="mount_setattr")


def pivot_root_here() -> None:
    """Make the current directory, a mount point, the root, and unmount the old root."""
    number = _PIVOT_ROOT.get(platform.machine())
    if number is None:
        raise OSError(f"the number of pivot_root is unknown for {platform.machine()}")
    syscall(number, b".", b".", description="pivot_root")
    _check(_libc.umount2(b".", MNT_DETACH), "umount of the old root")
    os.chdir("/")


def drop_capabilities() -> None:
    """Drop every capability of this process and of the processes that it starts."""
    for capability in range(64):
        with contextlib.suppress(OSError):  # past the last capability, or no privilege to drop any
            prctl(PR_CAPBSET_DROP, capability)
    number = _CAPSET.get(platform.machine())
    if number is None:
        raise OSError(f"the number of capset is unknown for {platform.machine()}")
    header = (ctypes.c_uint32 * 2)(_CAPABILITY_VERSION_3, 0)
    syscall(number, header, (ctypes.c_uint32 * 6)(), description="capset")
