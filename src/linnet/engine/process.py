# SPDX-License-Identifier: Apache-2.0
"""An engine in a process of its own, behind the door that a thread has: messages down, steps up, supervised.

Three threads of this process: one writes, so that ``send`` never waits for the engine; one listens, delivers, and
looks after the process; one notices when it hangs, and kills it. When it ends unasked, in this order: nobody may send,
everybody unfinished gets a Finished, the process is reaped, a new one is started, which must say that it is the same
engine, and sending goes on. More than so many restarts within so many seconds are a failure for good. Nothing of a
lost request is tried again.
"""

import logging
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import replace
from queue import SimpleQueue

from linnet.engine.door import Deliver
from linnet.engine.engine_child import EngineChild
from linnet.engine.messages import (
    Control,
    EngineLostError,
    EngineMessage,
    EngineUnavailableError,
    Finished,
    LoadAdapter,
    Submit,
    UnloadAdapter,
    error_info,
)
from linnet.engine.vocabulary import Vocabulary
from linnet.engine.watch import Watch
from linnet.engine.wire import BeatFrame, FrameError, ReadyFrame, StepFrame, Up, VocabularyFrame, down
from linnet.errors import ConfigError, LinnetError, defect

logger = logging.getLogger(__name__)

WINDOW_S = 600.0
"""Restarts are counted over the last ten minutes."""
PAUSE_S = 1.0
"""Before a restart that follows one which came to nothing."""
KILLED_S = 5.0
"""A killed process is gone by then."""


class EngineProcess:
    """See the module. Life: ``start`` -> ``send`` ... -> ``stop``. An EngineDoor."""

    def __init__(
        self,
        child: EngineChild,
        ready: ReadyFrame,
        again: Callable[[], EngineChild],
        deliver: Deliver,
        *,
        vocabulary: Callable[[], Vocabulary] | None = None,
        most_restarts: int = 3,
        most_step_s: float | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """``child`` has said ``ready``. ``again`` starts another like it and returns before that one is ready.

        ``vocabulary`` is sent before the first request with a grammar; it must return at once then.
        ``most_step_s``: a process that computes one step for longer, or says nothing at all, hangs; None: none does.
        """
        self._ready, self._again, self._deliver, self._clock = ready, again, deliver, clock
        self._vocabulary = vocabulary
        self._child: EngineChild | None = child
        self._coming: EngineChild | None = None  # started again and not ready
        self._most_restarts, self._most_step_s = most_restarts, most_step_s
        self._restarted_s: deque[float] = deque()
        self._unfinished: set[int] = set()
        self._adapters: dict[int, LoadAdapter] = {}  # that are loaded, whichever process it is
        self._changed = threading.Condition()
        self._outbox: SimpleQueue[tuple[EngineChild, bytearray | None] | None] = SimpleQueue()
        self._recovering = self._closed = self._stopping = self._draining = False
        self._listener = threading.Thread(target=self._run, name="linnet-engine", daemon=True)
        self._writer = threading.Thread(target=self._write, name="linnet-engine-messages", daemon=True)
        self.error: BaseException | None = None
        self.restarts = 0
        self._before = self.counters = ready.counters
        self.last_step_s = clock()

    def start(self) -> "EngineProcess":
        """Start to listen; returns self."""
        self._listener.start()
        self._writer.start()
        return self

    @property
    def healthy(self) -> bool:
        """Whether the process is there and takes messages."""
        return self._child is not None and not self._closed and self._listener.is_alive()

    @property
    def recovering(self) -> bool:
        """Whether it has died and another is on its way."""
        return self._recovering and self._listener.is_alive()

    @property
    def idle(self) -> bool:
        """Whether every request has been answered."""
        return not self._unfinished

    @property
    def process_id(self) -> int | None:
        """Of the process that runs now."""
        child = self._child
        return None if child is None else child.process.pid

    def send(self, message: EngineMessage) -> None:
        """Pass a message on, without waiting; of adapters also to a process that is on its way. Raises
        EngineUnavailableError when nobody would read it."""
        frame = down(message)
        with self._changed:
            if isinstance(message, Control) and message.action == "drain":
                self._draining = True  # and is not started again
            if self._closed:
                raise EngineUnavailableError("the engine is not running") from self.error
            child = self._child
            if isinstance(message, LoadAdapter | UnloadAdapter):
                self._remember(message)
                if child is None:
                    return
            if child is None:
                raise EngineUnavailableError("the engine has ended and is being started again")
            if isinstance(message, Submit) and self._draining:
                raise EngineUnavailableError("the engine is draining and takes no new requests")
            if isinstance(message, Submit) and message.grammar is not None:
                self._tell_vocabulary(child)
            encoded = child.channel.encode(frame)
            if isinstance(message, Submit):
                self._unfinished.add(message.request_id)
            self._outbox.put((child, encoded))

    def _remember(self, message: LoadAdapter | UnloadAdapter) -> None:
        """For the next process, which is told of all adapters before anything else."""
        if isinstance(message, LoadAdapter):
            self._adapters[message.adapter] = message
        else:
            self._adapters.pop(message.adapter, None)

    def _tell_vocabulary(self, child: EngineChild) -> None:
        if self._vocabulary is None:
            raise ConfigError("this engine was started without a vocabulary for grammars")
        if not child.knows_vocabulary:
            child.knows_vocabulary = True
            self._outbox.put((child, child.channel.encode(VocabularyFrame(self._vocabulary()))))

    def stop(self, timeout_s: float = 60.0) -> None:
        """Abort what is left, answer everybody, end the process. Idempotent.

        A process that has not ended after ``timeout_s`` is killed; TimeoutError says so, when it is gone.
        """
        with self._changed:
            self._stopping = self._closed = True
            child, coming = self._child, self._coming
            if coming is not None:
                coming.process.kill()
            if child is not None:
                self._outbox.put((child, None))
            self._changed.notify_all()
        if self._listener.ident is None:  # never started
            if child is not None:
                child.end()
            return
        self._listener.join(timeout_s)
        late = self._listener.is_alive()
        if late and child is not None:
            child.process.kill()
            self._listener.join(KILLED_S)
        self._outbox.put(None)
        self._writer.join(KILLED_S)
        if late:
            raise TimeoutError(f"the engine's process did not end within {timeout_s:g} s and was killed")

    def _write(self) -> None:
        while (item := self._outbox.get()) is not None:
            child, frame = item
            try:
                if frame is None:
                    child.channel.end_sending()
                else:
                    child.channel.send(frame)
            except OSError:  # it is dead, which the listener learns as well
                continue

    def _run(self) -> None:
        child = self._child
        while child is not None:
            problem = self._listen(child)
            ended = self._lost(child)
            child = self._start_again(problem or ended)

    def _listen(self, child: EngineChild) -> str | None:
        """Until it says nothing any more; what was wrong with what it said, in words that follow its name."""
        watch = Watch(child.process.kill, self._most_step_s)
        try:
            with watch:
                while (frame := child.receive()) is not None:
                    self._take(frame, watch)
            return watch.problem
        except FrameError as error:
            problem = f"sent {error}"
        except Exception as error:  # whoever is told is broken
            problem = f"could not be listened to: {defect(error)}"
        child.process.kill()
        return watch.problem or problem

    def _take(self, frame: Up, watch: Watch) -> None:
        if isinstance(frame, BeatFrame):
            watch.heard(frame.stepping_s)
            return
        watch.heard()
        if not isinstance(frame, StepFrame):
            raise FrameError("a frame out of place")
        with self._changed:
            self._unfinished.difference_update([end.request_id for end in frame.ends])
        self.counters = frame.counters.after(self._before) if self.restarts else frame.counters
        self.last_step_s = frame.at_s
        events = frame.events
        if events:
            self._deliver(events)

    def _lost(self, child: EngineChild) -> str:
        """It is gone, or to go: nobody sends, everybody is answered. Returns how it ended."""
        with self._changed:
            self._child = None
            self._recovering = not (self._stopping or self._draining)
            self._closed = not self._recovering
            if self._closed and not self._stopping:  # who drains must see it before it sees that all is answered
                self.error = EngineUnavailableError("the engine's process has ended")
            left = tuple(self._unfinished)
            self._unfinished.clear()
            self._before = self.counters = self._ready.counters.after(self.counters)
        gone = error_info(EngineLostError("the engine has ended"))
        reason = Finished(-1, "abort") if self._stopping else Finished(-1, "error", error=gone)
        if left:
            self._deliver(tuple(replace(reason, request_id=request_id) for request_id in left))
        return child.end()

    def _may_restart(self) -> bool:
        """Whether it may be started again now; counts it."""
        if self._stopping or self._draining:
            return False
        now_s = self._clock()
        while self._restarted_s and now_s - self._restarted_s[0] > WINDOW_S:
            self._restarted_s.popleft()
        if len(self._restarted_s) >= self._most_restarts:
            return False
        self._restarted_s.append(now_s)
        return True

    def _start_again(self, ended: str) -> EngineChild | None:
        """Another process that is ready, or None: asked to stop, or too many restarts (then ``error`` says so)."""
        while self._recovering and self._may_restart():
            logger.error(
                "the engine's process %s; it is started again (%d of %d restarts in %.0f minutes)",
                ended,
                len(self._restarted_s),
                self._most_restarts,
                WINDOW_S / 60,
            )
            try:
                return self._started()
            except (LinnetError, OSError) as error:
                ended = f"could not be started again: {error}"
            except Exception as error:  # memory may be short, which is why the last one ended
                ended = f"could not be started again: {defect(error)}"
            with self._changed:
                self._coming = None
                self._changed.wait_for(lambda: self._stopping, PAUSE_S)
        with self._changed:
            self._closed, self._recovering = True, False
            if not self._stopping:
                most = f"; {self._most_restarts} restarts in {WINDOW_S / 60:.0f} minutes are the most"
                self.error = EngineUnavailableError(f"the engine's process {ended}{'' if self._draining else most}")
        return None

    def _started(self) -> EngineChild | None:
        """Start one and wait for it. Raises LinnetError and OSError."""
        child = self._again()
        with self._changed:
            self._coming = child
            if self._stopping:
                child.process.kill()
        ready = child.ready()
        same = ready.is_of_the_same(self._ready)
        with self._changed:
            self._coming = None
            if same and not self._stopping:
                for message in self._adapters.values():
                    self._outbox.put((child, child.channel.encode(down(message))))
                self._child, self._recovering = child, False
                self.restarts += 1
                self.last_step_s = self._clock()
                logger.warning("the engine's process is back")
                return child
            self._recovering = self._recovering and not self._stopping
        child.end()
        if not same:
            raise EngineUnavailableError("another engine came of the same directory; its files have changed")
        return None
