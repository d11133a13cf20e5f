# SPDX-License-Identifier: Apache-2.0
"""An engine in a thread of its own: typed messages in, typed events out, a truthful health flag, a clean end.

The thread alone touches the engine. ``send`` may be called from any thread; ``deliver`` is called from the engine's
thread, with all events of one step at once, and must not block. Every Submit that ``send`` accepted is answered by
exactly one Finished, whatever happens: refusal, drain, stop or an exception in the loop.
"""

import threading
from collections import deque
from collections.abc import Callable

from linnet.engine.door import Deliver
from linnet.engine.engine import Engine
from linnet.engine.messages import (
    Control,
    EngineEvent,
    EngineLostError,
    EngineMessage,
    EngineUnavailableError,
    Finished,
    Submit,
    error_info,
)
from linnet.scheduler import SchedulerCounters


class EngineThread:
    """See the module. Life: ``start`` -> ``send`` ... -> ``stop``.

    ``stepped`` is called from the engine's thread after every round of messages and step, with or without events, when
    the counters are up to date. Who has a thread to spare may call ``run`` instead of ``start``.
    """

    recovering = False  # nobody starts a thread again
    restarts = 0
    process_id = None

    def __init__(self, engine: Engine, deliver: Deliver, stepped: Callable[[], None] = lambda: None) -> None:
        self._engine = engine
        self._deliver = deliver
        self._stepped = stepped
        self._clock = engine.clock
        self._inbox: deque[tuple[EngineMessage, float]] = deque()  # with the time it came
        self._wake = threading.Condition()
        self._closed = False  # no more messages are taken
        self._stopping = False
        self._thread = threading.Thread(target=self.run, name="linnet-engine", daemon=True)
        self._idle = threading.Event()
        self._idle.set()
        self._started = False
        self.draining = False
        self.error: BaseException | None = None
        self.counters: SchedulerCounters = engine.counters()
        self.last_step_s: float = self._clock()
        self._began_s: float | None = None

    def start(self) -> "EngineThread":
        """Start the loop; returns self."""
        self._started = True
        self._thread.start()
        return self

    @property
    def healthy(self) -> bool:
        """Whether the loop is running and takes messages; false from the moment it fails or stops."""
        return self._started and not self._closed and self._thread.is_alive()

    def send(self, message: EngineMessage) -> None:
        """Put a message into the inbox. Raises EngineUnavailableError when nobody would read it."""
        with self._wake:
            if self._closed:
                raise EngineUnavailableError("the engine is not running") from self.error
            if isinstance(message, Submit) and self.draining:
                raise EngineUnavailableError("the engine is draining and takes no new requests")
            if isinstance(message, Control) and message.action == "drain":
                self.draining = True  # for senders at once; the engine learns it in the order of the inbox
            self._inbox.append((message, self._clock()))
            self._idle.clear()
            self._wake.notify()

    @property
    def stepping_s(self) -> float:
        """How long the present step has taken; 0 where there is none."""
        began_s = self._began_s
        return 0.0 if began_s is None else self._clock() - began_s

    @property
    def idle(self) -> bool:
        """Whether every message has been handled and every request answered."""
        return self._idle.is_set()

    def stop(self, timeout_s: float = 60.0) -> None:
        """Abort what is left, answer everybody, end the thread. Idempotent."""
        with self._wake:
            self._stopping = True
            self._wake.notify()
        if self._started and threading.current_thread() is not self._thread:
            self._thread.join(timeout_s)
            if self._thread.is_alive():
                raise TimeoutError(f"the engine thread did not end within {timeout_s:g} s")

    def __enter__(self) -> "EngineThread":
        return self.start()

    def __exit__(self, *exception: object) -> None:
        self.stop()

    def run(self) -> None:
        """The loop, in the calling thread, until ``stop`` or a failure; ``error`` tells which."""
        try:
            while self._take_messages():
                if self._engine.has_work:
                    self._began_s = self._clock()
                    self._emit(self._engine.step())
                    self._began_s = None
                self.counters = self._engine.counters()
                self.last_step_s = self._clock()
                self._stepped()
        except BaseException as error:
            self.error = error
        self._close()

    def _take_messages(self) -> bool:
        """Hand the inbox to the engine, waiting for work if there is none; False when it is time to end."""
        with self._wake:
            while not self._inbox and not self._engine.has_work and not self._stopping:
                self._idle.set()
                self._wake.wait()
            if self._stopping:
                return False
            messages = tuple(self._inbox)
            self._inbox.clear()
        for message, arrival_s in messages:
            try:
                self._engine.handle(message, arrival_s)
            except Exception as error:  # one bad request never ends the others
                if not isinstance(message, Submit):
                    raise
                self._emit((Finished(message.request_id, "error", error=error_info(error)),))
        return True

    def _emit(self, events: tuple[EngineEvent, ...]) -> None:
        if events:
            self._deliver(events)

    def _close(self) -> None:
        """The last words: nobody is left without an answer. Runs in the engine's thread, once."""
        with self._wake:
            self._closed = True
            left = tuple(self._inbox)
            self._inbox.clear()
        waiting = [message.request_id for message, _ in left if isinstance(message, Submit)]
        if self.error is None:
            for request_id in self._engine.unfinished:
                self._engine.abort(request_id)
            try:
                self._emit(self._engine.step())
                self._emit(tuple(Finished(request_id, "abort") for request_id in waiting))
            except BaseException as error:
                self.error = error
        if self.error is not None:
            reason = error_info(EngineLostError(f"the engine failed ({type(self.error).__name__})"))
            waiting += self._engine.unfinished
            for request_id in waiting:
                try:
                    self._emit((Finished(request_id, "error", error=reason),))
                except Exception:
                    continue
        self.counters = self._engine.counters()
        try:
            self._stepped()
        except Exception as error:
            self.error = self.error or error
        self._idle.set()
