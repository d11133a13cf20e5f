# SPDX-License-Identifier: Apache-2.0
"""Progress, cancellation and signals of a long run, passed in as arguments."""

import resource
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType
from typing import Literal, Protocol

from linnet.errors import LinnetError

Stage = Literal["calibrate", "compress", "publish"]


@dataclass(frozen=True)
class ProgressEvent:
    """``done`` of ``total`` are units of work of the whole run (not of a layer), comparable within one run."""

    stage: Stage
    layer: str
    done: float
    total: float
    eta_s: float | None
    peak_memory_bytes: int


class Observer(Protocol):
    """Somebody who wants to know how far a run is. Called for every chunk and block of columns; must be quick."""

    def __call__(self, event: ProgressEvent, /) -> object: ...


class Interrupted(LinnetError):
    """The run was asked to stop; what is done is kept and the same call resumes it."""

    code = "interrupted"
    exit_status = 130
    http_status = 503


class CancelToken:
    """Set from anywhere (a signal handler, a thread); the run looks at it between small pieces of work."""

    def __init__(self) -> None:
        self._event = threading.Event()
        self.reason = "cancelled"

    def cancel(self, reason: str = "cancelled") -> None:
        """Ask the run to stop at the next opportunity."""
        self.reason = reason
        self._event.set()

    @property
    def cancelled(self) -> bool:
        """Whether somebody asked."""
        return self._event.is_set()


@contextmanager
def cancel_on_signals(token: CancelToken) -> Iterator[None]:
    """SIGINT and SIGTERM cancel the token while inside; a second signal ends the process at once.

    Outside the main thread, where Python allows no handlers, this does nothing.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    previous: dict[signal.Signals, signal._HANDLER] = {}

    def handle(number: int, frame: FrameType | None) -> None:
        token.cancel(signal.Signals(number).name)
        for each in previous:
            signal.signal(each, signal.SIG_DFL)

    for number in (signal.SIGINT, signal.SIGTERM):
        previous[number] = signal.signal(number, handle)
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def peak_memory_bytes() -> int:
    """The greatest resident size of this process so far (Linux counts in KiB)."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


class Meter:
    """Turns finished units of work into events with an ETA; raises Interrupted when the token is set.

    The ETA extrapolates the units done in *this* process, so that a resumed run is not thought fast.
    """

    def __init__(
        self,
        observer: Observer | None,
        cancel: CancelToken,
        total: float,
        how_to_resume: str,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._observer, self._cancel, self._clock = observer, cancel, clock
        self._total = max(total, 1e-9)
        self._how_to_resume = how_to_resume
        self._done = self._skipped = 0.0
        self._began = clock()

    def skip(self, units: float) -> None:
        """Units that an earlier process did."""
        self._done += units
        self._skipped += units

    def advance(self, stage: Stage, layer: str, units: float = 0.0) -> None:
        """Count units and tell; Interrupted if asked to stop."""
        self._done += units
        fresh = self._done - self._skipped
        elapsed = self._clock() - self._began
        eta = elapsed / fresh * max(self._total - self._done, 0.0) if fresh > 0 else None
        if self._observer is not None:
            self._observer(ProgressEvent(stage, layer, self._done, self._total, eta, peak_memory_bytes()))
        self.check(layer)

    def check(self, layer: str) -> None:
        """Interrupted if asked to stop."""
        if self._cancel.cancelled:
            raise Interrupted(f"stopped by {self._cancel.reason} at {layer}; {self._how_to_resume}")
