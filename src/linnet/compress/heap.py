# SPDX-License-Identifier: Apache-2.0
"""The C library's heap, kept from growing: tensors of many sizes come and go, and holes between them stay resident.

Both do nothing where the C library has no such call. Measured on a 135M model: a peak of 434 MiB instead of 533, in the
same time.
"""

import ctypes

_M_MMAP_THRESHOLD = -3
_LARGE_BYTES = 4 << 20


def large_blocks_apart() -> None:
    """Blocks from _LARGE_BYTES on get pages of their own, given back when they are freed.

    glibc does so of its own accord, but raises the size with every block that it frees, up to 32 MiB.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_MMAP_THRESHOLD, _LARGE_BYTES)


def give_back() -> None:
    """Free pages of the heap go back to the system."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(ctypes.c_size_t(0))
