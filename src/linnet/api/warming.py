# SPDX-License-Identifier: Apache-2.0
"""Brings a model's files into memory beside the rest of a start: the disk while the tokenizer is read, the page table
while the program is built. Both are system calls that need no interpreter; neither copies a weight.

The order bounds memory: mapped pages count as ours once they are in the page table, and by then what reading the
tokenizer took has been given back. A model larger than free memory is left to be read as it is used.
"""

import threading
from pathlib import Path

from linnet.api.memory import available_bytes
from linnet.formats import Checkpoint
from linnet.formats.read_ahead import file_bytes, read_ahead


def start_reading(directory: Path) -> threading.Thread | None:
    """Fill the page cache from now on; None for a model that would not fit into it. Raises nothing."""
    if not 0 < file_bytes(directory) <= available_bytes():
        return None
    thread = threading.Thread(target=read_ahead, args=(directory,), name="linnet-read-ahead", daemon=True)
    thread.start()
    return thread


def start_populating(checkpoint: Checkpoint) -> threading.Thread | None:
    """Enter the mapped weights into the page table from now on; None for a model larger than free memory."""
    if checkpoint.nbytes > available_bytes():
        return None
    thread = threading.Thread(target=checkpoint.populate, name="linnet-populate", daemon=True)
    thread.start()
    return thread
