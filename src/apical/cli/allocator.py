"""Keeping freed memory in the process, for programs that are ours from start to end."""

from __future__ import annotations

import ctypes
import sys

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # glibc's malloc.h
_KEPT, _LARGEST = 1 << 30, 1 << 25


def keep_freed_memory() -> bool:
    """Tell glibc to hold on to up to a GiB of freed memory; whether it took the advice. Elsewhere nothing happens.

    A phase that compares two passes holds activities of both, and without this every step hands that memory back to the
    system and gets it anew, page by page: a tenth to a third of a step on the CPU. The command line does so; a library must
    not change its host, so in a program of your own set MALLOC_TRIM_THRESHOLD_=1073741824 before it starts.
    """
    if not sys.platform.startswith("linux"):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        return False
    return bool(mallopt(_TRIM_THRESHOLD, _KEPT)) and bool(mallopt(_MMAP_THRESHOLD, _LARGEST))
