# SPDX-License-Identifier: Apache-2.0
"""Progress, cancellation and signals of a long run, passed in as arguments."""

import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType
from typing import Literal, Protocol

from linnet.errors import CapacityError, LinnetError
from linnet.process_memory import peak_bytes, resident_bytes

Stage = Literal["check", "weigh", "calibrate", "compress", "publish"]


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


class Meter:
    """Turns finished units of work into events with an ETA; raises Interrupted when the token is set.

    ``total``: units by kind of work, in predicted seconds. The ETA gives every kind the speed it has had so far in
    *this* process (a resumed run is not thought fast), and a kind that has not been seen the speed of the others.
    """

    def __init__(
        self,
        observer: Observer | None,
        cancel: CancelToken,
        total: Mapping[str, float],
        how_to_resume: str,
        clock: Callable[[], float] = time.monotonic,
        ceiling_bytes: int | None = None,
    ) -> None:
        self._observer, self._cancel, self._clock = observer, cancel, clock
        self._left = dict(total)
        self._total = max(sum(total.values()), 1e-9)
        self._how_to_resume, self._ceiling_bytes = how_to_resume, ceiling_bytes
        self._fresh = dict.fromkeys(total, 0.0)
        self._seconds = dict.fromkeys(total, 0.0)
        self._last = clock()

    def restart(self) -> None:
        """The time until now belongs to no work."""
        self._last = self._clock()

    def seconds_of(self, work: Mapping[str, float]) -> float:
        """What ``work``, units by kind, takes at the speed so far; as predicted where nothing has been done."""
        fresh, seconds = sum(self._fresh.values()), sum(self._seconds.values())
        overall = seconds / fresh if fresh > 0 else 1.0
        return sum(units * self._slowness(kind, overall) for kind, units in work.items())

    def skip(self, units: Mapping[str, float]) -> None:
        """Units that an earlier process did."""
        for kind, amount in units.items():
            self._left[kind] -= amount

    def advance(self, stage: Stage, layer: str, kind: str | None = None, units: float = 0.0) -> None:
        """Count units of a kind, to which the time since the last call went, and tell; Interrupted if asked to stop."""
        now = self._clock()
        if kind is not None:
            self._left[kind] -= units
            self._fresh[kind] += units
            self._seconds[kind] += now - self._last
            self._last = now
        if self._observer is not None:
            done = self._total - sum(max(left, 0.0) for left in self._left.values())
            self._observer(ProgressEvent(stage, layer, done, self._total, self._eta_s(), peak_bytes()))
        self.check(layer)

    def _eta_s(self) -> float | None:
        fresh, seconds = sum(self._fresh.values()), sum(self._seconds.values())
        if fresh <= 0 or seconds <= 0:
            return None
        return sum(max(left, 0.0) * self._slowness(kind, seconds / fresh) for kind, left in self._left.items())

    def _slowness(self, kind: str, overall: float) -> float:
        """Seconds per unit: measured, leaning on ``overall`` while little of the kind has been done."""
        lean = 0.005 * self._total
        return (self._seconds[kind] + lean * overall) / (self._fresh[kind] + lean)

    def check(self, layer: str) -> None:
        """Interrupted if asked to stop; CapacityError if more memory is in use than is allowed."""
        used = 0 if self._ceiling_bytes is None else resident_bytes()
        if self._ceiling_bytes is not None and used > self._ceiling_bytes:
            raise CapacityError(
                f"{used / 2**20:.0f} MiB are in use at {layer}, above the ceiling of "
                f"{self._ceiling_bytes / 2**20:.0f} MiB; {self._how_to_resume} with a higher one"
            )
        if self._cancel.cancelled:
            raise Interrupted(f"stopped by {self._cancel.reason} at {layer}; {self._how_to_resume}")
