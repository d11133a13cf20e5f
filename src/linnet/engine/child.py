# SPDX-License-Identifier: Apache-2.0
"""The engine's end of a channel: an EngineThread's loop in the calling thread, messages in, one frame a step out.

A reader thread hands over what comes. The end of the conversation, or a frame that cannot be read, stops the loop:
what is left is aborted and told, if anybody still listens.
"""

import logging
import threading

from linnet.engine.engine import Engine
from linnet.engine.messages import EngineEvent
from linnet.engine.thread import EngineThread
from linnet.engine.wire import Channel, FrameError, down_decoder, message_of, step
from linnet.errors import defect

logger = logging.getLogger(__name__)


class EngineServer:
    """See the module. Made and run once."""

    def __init__(self, engine: Engine, channel: Channel) -> None:
        self._channel = channel
        self._events: list[EngineEvent] = []
        self._loop = EngineThread(engine, self._events.extend, self._tell)
        self._broken: FrameError | None = None

    def run(self) -> int:
        """Until the peer ends the conversation (0) or something fails (1); returns the exit status."""
        threading.Thread(target=self._listen, name="linnet-messages", daemon=True).start()
        self._loop.run()
        error = self._broken or self._loop.error
        if isinstance(error, FrameError):
            logger.error("the engine ends: %s", error)
        elif error is not None and not isinstance(error, ConnectionError):  # else nobody is left to tell
            logger.error("the engine failed: %s", defect(error))
        return 0 if error is None else 1

    def _tell(self) -> None:
        """The engine's thread: one frame with everything since the last one. Blocks while the parent does not read."""
        frame = step(tuple(self._events), self._loop.counters, self._loop.last_step_s)
        self._events.clear()
        self._channel.send(self._channel.encode(frame))

    def _listen(self) -> None:
        decoder = down_decoder()
        try:
            while (frame := self._channel.receive(decoder)) is not None:
                self._loop.send(message_of(frame))
        except FrameError as error:
            self._broken = error
        except Exception:  # the loop has ended meanwhile
            logger.debug("a message after the engine's end")
        self._loop.stop()
