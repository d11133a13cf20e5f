# SPDX-License-Identifier: Apache-2.0
"""How many threads an operation is shared out to: thousands of short ones lose more than they gain by waiting."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def one_thread() -> Iterator[None]:
    """torch works on the calling thread alone inside; then as before."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
