"""What the C library does with freed memory: keep it for the next buffers, and now and then give back a peak."""

from __future__ import annotations

import ctypes
import threading

_TRIM_THRESHOLD, _MMAP_THRESHOLD, _ARENA_MAX = -1, -3, -8
_GIVEN_BACK_EVERY = 60.0


def set_up() -> None:
    """Tells glibc what suits us; call it before there are threads. Elsewhere it does nothing.

    Freed buffers are kept: without that each network buffer may be mapped and faulted in anew. They are kept in one
    place for all threads: each of a dozen places would grow to the most that it ever held. What a burst has left there
    between small things that stay is given back once a minute, by a thread.
    """
    try:
        library = ctypes.CDLL(None)
        library.mallopt(_TRIM_THRESHOLD, 64 << 20)
        library.mallopt(_MMAP_THRESHOLD, 8 << 20)
        library.mallopt(_ARENA_MAX, 1)
    except (OSError, AttributeError):
        return  # not glibc
    # A daemon: it owns nothing that has to be closed.
    threading.Thread(target=_give_back_for_ever, name="allocator", daemon=True).start()


def give_back() -> None:
    """Gives the kernel every page that is wholly free. Some milliseconds, in which nobody else can allocate."""
    try:
        ctypes.CDLL(None).malloc_trim(0)
    except (OSError, AttributeError):
        pass  # not glibc


def _give_back_for_ever() -> None:
    never = threading.Event()
    while not never.wait(_GIVEN_BACK_EVERY):
        give_back()
