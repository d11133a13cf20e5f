# SPDX-License-Identifier: Apache-2.0
"""Our end of a channel to a process with an engine in it; child.py is the other one."""

from contextlib import suppress
from typing import Any

from linnet.child_process import ChildProcess
from linnet.engine.messages import EngineUnavailableError
from linnet.engine.refusals import error_of
from linnet.engine.wire import Channel, FrameError, ReadyFrame, RefusedFrame, Up, up_decoder


class EngineChild:
    """One process with an engine in it, from its start to its end."""

    def __init__(self, process: ChildProcess) -> None:
        self.process = process
        self.channel = Channel(process.connection)
        self._decoder = up_decoder()
        self.knows_vocabulary = False

    def tell(self, value: Any) -> None:
        """Send a small frame. It may have died: whoever waits for it learns that."""
        with suppress(OSError):
            self.channel.send(self.channel.encode(value))

    def ready(self) -> ReadyFrame:
        """Wait until it takes messages. Raises what it was refused with, or EngineUnavailableError if it died."""
        try:
            frame = self.receive()
        except FrameError as error:
            self.process.kill()
            self.end()
            raise EngineUnavailableError(f"the engine's process sent {error}") from None
        if isinstance(frame, ReadyFrame):
            return frame
        ended = self.end()
        if isinstance(frame, RefusedFrame):
            raise error_of(frame)
        raise EngineUnavailableError(f"the engine's process, opening the model, {ended}")

    def receive(self) -> Up | None:
        """What it says next; None: nothing any more. Raises FrameError."""
        return self.channel.receive(self._decoder)

    def end(self) -> str:
        """Make sure that it is gone; how it ended, in words."""
        ended = self.process.end()
        self.channel.close()
        return ended
