# SPDX-License-Identifier: Apache-2.0
"""Brings the weights into memory beside the reading of the tokenizer: system calls on a thread of their own, which need
no interpreter and copy nothing. A model larger than free memory is left to be read as it is used.

Reading a tokenizer takes memory for a moment. That much of the weights is mapped only when it has been given back, so
the largest size of the process is the one it keeps.
"""

import threading
from collections.abc import Sequence

import numpy as np

from linnet.api.memory import available_bytes
from linnet.formats.residency import populate, will_need


class Warming:
    """Maps ``arrays`` in order, all but the last ``aside_bytes`` at once, those when ``finish`` is called."""

    def __init__(self, arrays: Sequence[np.ndarray], aside_bytes: int) -> None:
        total = sum(array.nbytes for array in arrays)
        self._rest: list[np.ndarray] = []
        self.threads: list[threading.Thread] = []
        if total > available_bytes():
            return
        first: list[np.ndarray] = []
        room = max(total - aside_bytes, 0)
        for array in arrays:
            first.append(array[:room])
            self._rest.append(array[room:])
            room -= min(room, array.nbytes)
        self._start([*arrays], first)

    def finish(self) -> None:
        """Map what was put aside. Returns at once."""
        rest, self._rest = self._rest, []
        if rest:
            self._start([], rest)

    def _start(self, needed: list[np.ndarray], mapped: list[np.ndarray]) -> None:
        def work() -> None:
            for array in needed:
                will_need(array)
            for array in mapped:
                populate(array)

        thread = threading.Thread(target=work, name="linnet-warming", daemon=True)
        thread.start()
        self.threads.append(thread)
