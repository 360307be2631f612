"""System calls that the sandbox refuses, through libseccomp, which most base systems have, Debian's among them.

Standard library only: the runner of the `code` verifier loads this file by its path into a bare interpreter.
"""

import ctypes
import errno
import os
from collections.abc import Iterable

_ALLOW, _ERRNO = 0x7FFF0000, 0x00050000
_NOT_EQUAL, _MASKED_EQUAL = 1, 7
_CLONE_THREAD = 0x00010000
_O_ACCMODE = os.O_WRONLY | os.O_RDWR

NETWORK = """socket bind listen accept accept4 connect sendmsg sendmmsg"""
FILES = """creat mkdir mkdirat mknod mknodat rmdir unlink unlinkat rename renameat renameat2 link linkat symlink
    symlinkat chmod fchmod fchmodat fchmodat2 chown fchown lchown fchownat truncate utime utimes utimensat futimesat
    setxattr lsetxattr fsetxattr removexattr lremovexattr fremovexattr"""
KERNEL = """mount umount2 pivot_root chroot mount_setattr move_mount open_tree fsopen fsconfig fsmount fspick unshare
    setns bpf perf_event_open userfaultfd ptrace process_vm_readv process_vm_writev process_madvise kcmp pidfd_open
    pidfd_getfd pidfd_send_signal add_key request_key keyctl init_module finit_module delete_module kexec_load
    kexec_file_load reboot swapon swapoff acct quotactl syslog settimeofday clock_settime adjtimex clock_adjtime
    sethostname setdomainname iopl ioperm open_by_handle_at name_to_handle_at fanotify_init personality vhangup
    io_uring_setup io_uring_enter io_uring_register shmget shmat shmctl msgget msgsnd msgrcv msgctl semget semop
    semtimedop semctl mq_open mq_unlink memfd_secret"""
PROCESSES = """fork vfork execve execveat setsid setpgid tkill rt_sigqueueinfo rt_tgsigqueueinfo setpriority
    sched_setaffinity sched_setscheduler sched_setparam sched_setattr ioprio_set"""


class _Compare(ctypes.Structure):
    _fields_ = [
        ("argument", ctypes.c_uint),
        ("operator", ctypes.c_int),
        ("first", ctypes.c_uint64),
        ("second", ctypes.c_uint64),
    ]


class SeccompError(OSError):
    """libseccomp is missing, or the kernel accepts no filter."""


class _Filter:
    """A list of refused system calls; every other call is allowed."""

    def __init__(self) -> None:
        try:
            self.library = ctypes.CDLL("libseccomp.so.2")
        except OSError as error:
            raise SeccompError(f"libseccomp cannot be loaded ({error})") from None
        self.library.seccomp_init.restype = ctypes.c_void_p
        self.context = ctypes.c_void_p(self.library.seccomp_init(ctypes.c_uint32(_ALLOW)))
        if not self.context:
            raise SeccompError("seccomp_init failed")

    def refuse(self, names: Iterable[str], *when: _Compare, error: int = errno.EPERM) -> None:
        """Refuse the calls with those names, if all of `when` hold. Names unknown to libseccomp are skipped."""
        for name in names:
            number = self.library.seccomp_syscall_resolve_name(name.encode())
            if number < 0:
                continue
            array = (_Compare * len(when))(*when)
            action = ctypes.c_uint32(_ERRNO | error)
            status = self.library.seccomp_rule_add_array(self.context, action, number, len(when), array)
            if status:
                raise SeccompError(f"the rule for {name} was refused: {os.strerror(-status)}")

    def load(self) -> None:
        """Apply the filter to this thread and all that it starts. Sets no-new-privileges too."""
        status = self.library.seccomp_load(self.context)
        self.library.seccomp_release(self.context)
        if status:
            raise SeccompError(f"the kernel refused the filter: {os.strerror(-status)}")


def _make_filter() -> _Filter:
    syscalls = _Filter()
    syscalls.refuse((NETWORK + " " + KERNEL).split())
    # Argument 4 of sendto is an address; without an address the call is send(2).
    syscalls.refuse(["sendto"], _Compare(4, _NOT_EQUAL, 0, 0))
    syscalls.refuse(FILES.split(), error=errno.EROFS)
    for call, argument in (("open", 1), ("openat", 2)):
        for flag in (os.O_WRONLY, os.O_RDWR):
            syscalls.refuse([call], _Compare(argument, _MASKED_EQUAL, _O_ACCMODE, flag), error=errno.EROFS)
        # No rule for O_TMPFILE: it includes O_DIRECTORY, which reading a folder sets, and needs write access.
        syscalls.refuse([call], _Compare(argument, _MASKED_EQUAL, os.O_CREAT, os.O_CREAT), error=errno.EROFS)
    syscalls.refuse(["openat2"], error=errno.ENOSYS)  # its flags are in memory, which a filter cannot read
    return syscalls


def refuse_network_and_writes() -> None:
    """Refuse the network, writes and changes of files, access to other processes' memory, and kernel administration."""
    _make_filter().load()


def refuse_processes() -> None:
    """Refuse what `refuse_network_and_writes` refuses, new processes, other programs, and signals to other processes.

    The process group cannot change. New threads are allowed.
    """
    syscalls = _make_filter()
    syscalls.refuse(PROCESSES.split())
    syscalls.refuse(["clone"], _Compare(0, _MASKED_EQUAL, _CLONE_THREAD, 0))
    syscalls.refuse(["clone3"], error=errno.ENOSYS)  # the C library then uses clone, whose flags a filter can read
    syscalls.refuse(["kill", "tgkill"], _Compare(0, _NOT_EQUAL, os.getpid(), 0))
    syscalls.refuse(["prlimit64"], _Compare(0, _NOT_EQUAL, 0, 0))
    syscalls.load()
