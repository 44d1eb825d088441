"""What the whole process does with memory and threads; what makes torch faster only the command line turns on.

Memory: without `keep_freed_memory` glibc maps and unmaps every buffer above 32 MiB, and the kernel clears each page
anew: encoding pictures on two cores ran at 24 a second, with it at 61 (EfficientNet-Lite0, 224 px, batches of 32).

Threads: OpenMP's wait for each other in a loop that takes a whole core. Where another process wants that core, such as
one that decodes pictures, the one waited for gets less of it: on two cores with other work an encoding thread's
pictures took 59 ms of CPU, and 23 ms with `let_threads_sleep`.
"""

from __future__ import annotations

import ctypes
import os
import sys

_TRIM_THRESHOLD, _MMAP_MAX = -1, -4
_KEPT = 2**31 - 1


def let_threads_sleep() -> bool:
    """Let OpenMP's threads sleep while they wait, unless the environment says otherwise; False where it is too late."""
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # read when torch is loaded
    return "torch" not in sys.modules


def keep_freed_memory() -> bool:
    """Turn it on for this process, Linux with glibc; return whether the C library took it."""
    if sys.platform != "linux":
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        return False
    return bool(mallopt(_MMAP_MAX, 0)) and bool(mallopt(_TRIM_THRESHOLD, _KEPT))


def release_freed_memory() -> bool:
    """Give the kernel back what is free inside the heap, Linux with glibc; return whether there was any."""
    if sys.platform != "linux":
        return False
    try:
        return bool(ctypes.CDLL(None).malloc_trim(0))
    except (OSError, AttributeError):
        return False
