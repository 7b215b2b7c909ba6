"""Keep freed memory in the process: page faults otherwise cost as much as the arithmetic.

By default glibc asks the system for every large block and hands it back when it is freed. A
training step frees and asks for the same activations again, and each time the system maps and
clears every page anew. With these settings freed blocks stay on the heap, but for those of
32 MB and more: of them there are few, clearing their pages costs some percent, and on the heap they
would leave gaps that smaller blocks fill, so that a step needs twice the memory.

The environment variable ``GLIBC_TUNABLES`` does the same from outside and wins where it is set;
with another C library (macOS, musl) nothing happens and nothing is needed.
"""

from __future__ import annotations

import ctypes
import os
import sys

__all__ = ["keep_freed_memory"]

# mallopt's numbers, from glibc's malloc.h.
_TRIM_THRESHOLD, _TOP_PAD, _MMAP_THRESHOLD = -1, -2, -3
_MAPPED = 32 << 20  # the largest threshold that every version of glibc takes
_NEVER = -1  # read as the largest size: the heap is never trimmed
_GROWTH = 16 << 20


def keep_freed_memory() -> bool:
    """Tell glibc's allocator to keep freed blocks; call it once, before the first large tensor.

    Returns
    -------
    bool
        Whether the settings are in force: False where the C library is not glibc or the user has
        set the allocator through ``GLIBC_TUNABLES``.
    """
    if not sys.platform.startswith("linux"):
        return False
    if "glibc.malloc" in os.environ.get("GLIBC_TUNABLES", ""):
        return False
    try:
        mallopt = ctypes.CDLL("libc.so.6").mallopt
    except (OSError, AttributeError):
        return False
    mallopt.argtypes, mallopt.restype = (ctypes.c_int, ctypes.c_int), ctypes.c_int
    settings = (
        (_MMAP_THRESHOLD, _MAPPED),
        (_TRIM_THRESHOLD, _NEVER),
        (_TOP_PAD, _GROWTH),
    )
    taken = [mallopt(name, value) == 1 for name, value in settings]
    return all(taken)
