# SPDX-License-Identifier: Apache-2.0
"""Tells the system what becomes of mapped bytes: soon needed, needed now, no longer needed. Copies nothing.

Advice is given with the interpreter lock free, and an array that is being advised on cannot be unmapped.
"""

import ctypes
import mmap
from typing import Any

import numpy as np
import numpy.typing as npt

_POPULATE_READ = 22
"""MADV_POPULATE_READ of Linux 5.14."""

Bytes = npt.NDArray[np.uint8]


def will_need(array: Bytes) -> bool:
    """Start reading the bytes into the page cache; returns when the reads are under way. Nothing becomes resident."""
    return _advise(array, mmap.MADV_WILLNEED)


def populate(array: Bytes) -> bool:
    """Enter the pages into the page table at once, reading what is not in memory; False where that is impossible.

    A third of the time that the same pages take one fault after the other. They are resident from then on.
    """
    return _advise(array, _POPULATE_READ)


def release(array: Bytes) -> bool:
    """Take the pages of a file out of the page table again. They stay in the page cache and come back when touched."""
    if array.flags["W"]:
        raise ValueError("only pages that a file holds can be released")
    return _advise(array, mmap.MADV_DONTNEED)


def _advise(array: Bytes, advice: int) -> bool:
    if array.nbytes == 0:
        return True
    madvise: Any = ctypes.CDLL(None).madvise
    madvise.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
    before = array.ctypes.data % mmap.PAGESIZE
    return bool(madvise(array.ctypes.data - before, array.nbytes + before, advice) == 0)
