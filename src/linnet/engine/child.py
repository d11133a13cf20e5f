# SPDX-License-Identifier: Apache-2.0
"""The engine's end of a channel: an EngineThread's loop in the calling thread, messages in, one frame a step out.

A reader thread hands over what comes, and another thread says once a second that there is somebody: a step may be long.
The end of the conversation, or a frame that cannot be read, stops the loop: what is left is aborted and told, if there
is still anybody who listens.
"""

import logging
import threading
import time
from concurrent.futures import Future
from contextlib import suppress

from linnet.engine.engine import Engine
from linnet.engine.messages import EngineEvent
from linnet.engine.thread import EngineThread
from linnet.engine.vocabulary import Vocabulary
from linnet.engine.watch import BEAT_S
from linnet.engine.wire import (
    BeatFrame,
    Channel,
    FrameError,
    Up,
    VocabularyFrame,
    down_decoder,
    message_of,
    step,
)
from linnet.errors import defect

logger = logging.getLogger(__name__)


class EngineServer:
    """See the module. Made and run once."""

    def __init__(self, engine: Engine, channel: Channel, vocabulary: "Future[Vocabulary]") -> None:
        """``vocabulary`` is set when it comes, for who compiles grammars."""
        self._engine, self._channel, self._vocabulary = engine, channel, vocabulary
        self._events: list[EngineEvent] = []
        self._loop = EngineThread(engine, self._events.extend, self._tell)
        self._broken: FrameError | None = None
        self._sending = threading.Lock()

    def run(self) -> int:
        """Until the peer ends the conversation (0) or something fails (1); returns the exit status."""
        threading.Thread(target=self._listen, name="linnet-messages", daemon=True).start()
        threading.Thread(target=self._beat, name="linnet-beat", daemon=True).start()
        self._loop.run()
        error = self._broken or self._loop.error
        if error is None or isinstance(error, ConnectionError):
            self._engine.close()  # which may have something to keep
        if isinstance(error, FrameError):
            logger.error("the engine ends: %s", error)
        elif error is not None and not isinstance(error, ConnectionError):  # else nobody is left to tell
            logger.error("the engine failed: %s", defect(error))
        return 0 if error is None else 1

    def _tell(self) -> None:
        """The engine's thread: one frame with everything since the last one. Blocks while the parent does not read."""
        frame = step(tuple(self._events), self._loop.counters, self._loop.last_step_s)
        self._events.clear()
        self._send(frame)

    def _send(self, frame: Up) -> None:
        with self._sending:
            self._channel.send(self._channel.encode(frame))

    def _beat(self) -> None:
        """Until nobody listens any more."""
        with suppress(OSError):
            while True:
                time.sleep(BEAT_S)
                self._send(BeatFrame(self._loop.stepping_s))

    def _listen(self) -> None:
        decoder = down_decoder()
        try:
            while (frame := self._channel.receive(decoder)) is not None:
                if isinstance(frame, VocabularyFrame):
                    self._vocabulary.set_result(frame.vocabulary)
                else:
                    self._loop.send(message_of(frame))
        except FrameError as error:
            self._broken = error
        except Exception:  # the loop has ended meanwhile
            logger.debug("a message after the engine's end")
        self._loop.stop()
