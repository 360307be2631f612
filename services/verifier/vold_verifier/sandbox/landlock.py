"""Landlock: limit the files that this process and its children may read, without privileges. Linux 5.13 or newer."""

import ctypes
import os
from collections.abc import Iterable

from vold_verifier.sandbox import kernel

_CREATE_RULESET, _ADD_RULE, _RESTRICT_SELF = 444, 445, 446
_VERSION = 1
_PATH_BENEATH = 1
_EXECUTE, _READ_FILE, _READ_DIR = 1 << 0, 1 << 2, 1 << 3
_FILE_ACCESS_BITS = {1: 13, 2: 14, 3: 15, 4: 15, 5: 16}
_TCP_BIND_AND_CONNECT = 0b11
_ABSTRACT_SOCKETS_AND_SIGNALS = 0b11


class _Ruleset(ctypes.Structure):
    _fields_ = [(name, ctypes.c_uint64) for name in ("files", "network", "scoped")]


class _PathBeneath(ctypes.Structure):
    _pack_ = 1
    _fields_ = [("access", ctypes.c_uint64), ("parent", ctypes.c_int32)]


def version() -> int:
    """Return the version of the kernel's Landlock interface, 0 without Landlock."""
    try:
        return kernel.syscall(
            _CREATE_RULESET, None, ctypes.c_size_t(0), ctypes.c_uint32(_VERSION), description="landlock"
        )
    except OSError:
        return 0


def allow_reading_only(paths: Iterable[str]) -> int:
    """Allow only reading under `paths`; from version 4 on refuse TCP, from 6 on signals to processes outside.

    Needs no-new-privileges. Returns the version of the interface. Raises OSError.
    """
    interface = version()
    if not interface:
        raise OSError("the kernel has no Landlock")
    rules = _Ruleset(files=(1 << _FILE_ACCESS_BITS.get(interface, 16)) - 1)
    size = 8
    if interface >= 4:
        rules.network, size = _TCP_BIND_AND_CONNECT, 16
    if interface >= 6:
        rules.scoped, size = _ABSTRACT_SOCKETS_AND_SIGNALS, 24
    ruleset = kernel.syscall(
        _CREATE_RULESET,
        ctypes.byref(rules),
        ctypes.c_size_t(size),
        ctypes.c_uint32(0),
        description="landlock_create_ruleset",
    )
    try:
        for path in paths:
            _allow(ruleset, path)
        kernel.syscall(_RESTRICT_SELF, ctypes.c_int(ruleset), ctypes.c_uint32(0), description="landlock_restrict_self")
    finally:
        os.close(ruleset)
    return interface


def _allow(ruleset: int, path: str) -> None:
    access = _EXECUTE | _READ_FILE | (_READ_DIR if os.path.isdir(path) else 0)
    descriptor = os.open(path, os.O_PATH | os.O_CLOEXEC)
    try:
        rule = _PathBeneath(access, descriptor)
        kernel.syscall(
            _ADD_RULE, ctypes.c_int(ruleset), _PATH_BENEATH, ctypes.byref(rule), ctypes.c_uint32(0), description=path
        )
    finally:
        os.close(descriptor)
