# SPDX-License-Identifier: Apache-2.0
"""Notices an engine's process that is there and does nothing: one that says nothing, and one whose step does not end.

A process beats once a second, during a step too, from a thread of its own. Silence is counted in looks at it and not by
the clock: if everything stood still, this process too, one look has passed.
"""

import threading
from collections.abc import Callable

BEAT_S = 1.0
SILENT_BEATS = 10
"""A process that says nothing that long has stopped, or cannot get at its own interpreter."""


class Watch:
    """A thread that calls ``kill`` once when the process hangs; ``problem`` says why then. A context manager.

    ``most_s``: the longest a step may take; None: nothing is watched.
    """

    def __init__(self, kill: Callable[[], None], most_s: float | None) -> None:
        self.problem: str | None = None
        self._kill, self._most_s = kill, most_s
        self._silent = 0
        self._stepping_s = 0.0
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, name="linnet-engine-watch", daemon=True)

    def heard(self, stepping_s: float = 0.0) -> None:
        """It has said something; a step that has not ended has taken so long. From any thread."""
        self._silent, self._stepping_s = 0, stepping_s

    def __enter__(self) -> "Watch":
        if self._most_s is not None:
            self._thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._over.set()

    def _run(self) -> None:
        assert self._most_s is not None
        while not self._over.wait(BEAT_S):
            self._silent += 1
            if self._silent > SILENT_BEATS:
                self.problem = f"said nothing for {SILENT_BEATS * BEAT_S:g} s and was killed"
            elif self._stepping_s > self._most_s:
                self.problem = f"computed one step for more than {self._most_s:g} s and was killed"
            if self.problem is not None:
                self._kill()
                return
