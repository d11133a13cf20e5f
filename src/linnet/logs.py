# SPDX-License-Identifier: Apache-2.0
"""What a server writes to standard error: sentences for people, or one JSON object a line for machines."""

import json
import logging
import sys
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from linnet.errors import defect
from linnet.log_queue import LineQueue

TEXT_FORMAT = "%(levelname)s %(name)s: %(message)s"
"""Of the logs of a server and of its engine, which share standard error."""


def begin_log(as_json: bool = False) -> None:
    """Warnings and errors of this process go to standard error from now on, by a thread where that is a file."""
    if not logging.getLogger().handlers:
        logging.basicConfig(level=logging.WARNING, format=TEXT_FORMAT, handlers=[_handler()])
    if as_json:
        write_json()


def _handler() -> logging.Handler:
    try:
        return LineQueue(sys.stderr.fileno())
    except (OSError, ValueError, AttributeError):  # it is no file
        return logging.StreamHandler()


def end_log() -> None:
    """Write what is left. Python does so at its end; who ends otherwise must ask for it."""
    logging.shutdown()


def _queues() -> list[LineQueue]:
    return [handler for handler in logging.getLogger().handlers if isinstance(handler, LineQueue)]


def say(line: str) -> None:
    """A line of its own to standard error, among those of the log."""
    for lines in _queues():
        lines.say(line)
        return
    print(line, file=sys.stderr, flush=True)


def dropped_lines() -> int:
    """How many lines nobody took in time."""
    return sum(lines.dropped for lines in _queues())


def write_json() -> None:
    """Log records, Python's own warnings among them, are JSON lines from now on."""
    logging.captureWarnings(True)
    for handler in logging.getLogger().handlers:
        handler.setFormatter(JsonFormatter())


def json_line(event: str, facts: Mapping[str, Any], at: datetime | None = None) -> str:
    """What happened and when (UTC; None: now), then ``facts``, on one line."""
    moment = (at or datetime.now(UTC)).isoformat(timespec="milliseconds").replace("+00:00", "Z")
    return json.dumps({"event": event, "time": moment, **facts}, ensure_ascii=False)


class JsonFormatter(logging.Formatter):
    """A log record as the event ``log``. An exception is its type and its places: its message may hold a prompt."""

    def format(self, record: logging.LogRecord) -> str:
        """See the class."""
        facts = {"level": record.levelname.lower(), "logger": record.name, "message": record.getMessage()}
        if record.exc_info and record.exc_info[1] is not None:
            facts["error"] = defect(record.exc_info[1])
        return json_line("log", facts, datetime.fromtimestamp(record.created, UTC))
