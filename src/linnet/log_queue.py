# SPDX-License-Identifier: Apache-2.0
"""Lines to standard error by a thread of their own: whoever has something to say never waits for who reads it.

A pipe that nobody reads any more is full after some hundred lines, and writing to it lasts for ever. The thread may
stand still then; the event loop and the engine's steps may not.
"""

import logging
import os
import queue
import time
from logging.handlers import QueueHandler, QueueListener
from typing import Any

MOST_LINES = 10_000
"""That wait to be written; some megabytes. What comes beyond is dropped and counted."""
PATIENCE_S = 1.0
"""For the last lines, when all has been said."""
_BUSY_S = 0.05


class LineQueue(QueueHandler):
    """A handler of log records, and of lines that are no records (``say``); formats at once and writes later."""

    def __init__(self, descriptor: int, most: int = MOST_LINES) -> None:
        """``descriptor``: of an open file; it is written to and never closed."""
        super().__init__(queue.Queue(most))
        self.dropped = 0
        self._listener: _Writer | None = _Writer(self, descriptor)
        self._listener.start()

    def say(self, line: str) -> None:
        """One line, as it is."""
        self.acquire()
        try:
            self.enqueue(line)
        finally:
            self.release()

    def prepare(self, record: logging.LogRecord) -> str:
        """The line that it becomes."""
        return self.format(record)

    def enqueue(self, record: Any) -> None:
        """Never waits. (A line, see ``prepare``.)"""
        try:
            self.queue.put_nowait(record)
        except queue.Full:
            self.dropped += 1

    def close(self) -> None:
        """Write what is left, as far as that goes in a second. Idempotent."""
        listener, self._listener = self._listener, None
        if listener is not None:
            listener.stop()
        super().close()


class _Writer(QueueListener):
    """The thread."""

    def __init__(self, source: LineQueue, descriptor: int) -> None:
        super().__init__(source.queue)
        self._source, self._descriptor, self._told = source, descriptor, 0

    def handle(self, record: Any) -> None:
        """Write a line, and how many were dropped since the last time that there was room."""
        self._write(record)
        dropped = self._source.dropped
        if dropped > self._told:
            text = f"{dropped - self._told} lines were dropped: standard error takes them more slowly than they come"
            self._told = dropped
            self._write(self._source.format(logging.makeLogRecord({
                "name": __name__, "levelname": "WARNING", "levelno": logging.WARNING, "msg": text,
            })))  # fmt: skip

    def stop(self) -> None:
        """As QueueListener's, but not for ever."""
        until = time.monotonic() + PATIENCE_S
        try:
            self.queue.put(None, timeout=PATIENCE_S)  # type: ignore[attr-defined]
        except queue.Full:
            return
        thread = self._thread
        if thread is not None:
            thread.join(max(until - time.monotonic(), 0.0))

    def _write(self, line: str) -> None:
        left = memoryview(f"{line}\n".encode("utf-8", "backslashreplace"))
        while left:
            try:
                left = left[os.write(self._descriptor, left) :]
            except BlockingIOError:
                time.sleep(_BUSY_S)
            except OSError:  # nobody can read it any more
                return
