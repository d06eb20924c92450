"""A process that has the kernel refuse its own system calls, for good: run it in a process of its own."""

from __future__ import annotations

import ctypes
import platform
import struct
import sys
from collections.abc import Sequence

UNABLE = 77
"""The exit code where the kernel, or whoever runs us, does not allow it."""

_NUMBERS = {
    "x86_64": {"pread64": 17, "pwrite64": 18, "fsync": 74, "fdatasync": 75},
    "aarch64": {"pread64": 67, "pwrite64": 68, "fsync": 82, "fdatasync": 83},
}
_LOAD, _JUMP_IF_EQUAL, _RETURN = 0x20, 0x15, 0x06  # of the Berkeley packet filter: what a seccomp filter is written in
_ALLOW, _ERRNO = 0x7FFF0000, 0x00050000
_NO_NEW_PRIVILEGES = 38
_SECCOMP = {"x86_64": 317, "aarch64": 277}
_FILTER, _ALL_THREADS = 1, 1


class _Program(ctypes.Structure):
    _fields_ = [("length", ctypes.c_ushort), ("filter", ctypes.c_char_p)]


def refuse(calls: Sequence[str], error: int) -> None:
    """From now on `calls` fail with `error`, in every thread of this process. Exits where that cannot be had."""
    machine = platform.machine()
    if machine not in _NUMBERS:
        sys.exit(UNABLE)
    instructions = [struct.pack("HBBI", _LOAD, 0, 0, 0)]  # the call's number
    for position, call in enumerate(calls):
        to_the_end = len(calls) - position
        instructions.append(struct.pack("HBBI", _JUMP_IF_EQUAL, to_the_end, 0, _NUMBERS[machine][call]))
    instructions.append(struct.pack("HBBI", _RETURN, 0, 0, _ALLOW))
    instructions.append(struct.pack("HBBI", _RETURN, 0, 0, _ERRNO | error))
    program = _Program(len(instructions), b"".join(instructions))
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_NO_NEW_PRIVILEGES, 1, 0, 0, 0) or libc.syscall(
        ctypes.c_long(_SECCOMP[machine]), _FILTER, _ALL_THREADS, ctypes.byref(program)
    ):
        sys.exit(UNABLE)
