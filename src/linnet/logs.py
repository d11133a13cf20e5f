# SPDX-License-Identifier: Apache-2.0
"""What a server writes to standard error: sentences for people, or one JSON object a line for machines."""

import json
import logging
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from linnet.errors import defect

TEXT_FORMAT = "%(levelname)s %(name)s: %(message)s"
"""Of the logs of a server and of its engine, which share standard error."""


def begin_log(as_json: bool = False) -> None:
    """Warnings and errors of this process go to standard error from now on."""
    logging.basicConfig(level=logging.WARNING, format=TEXT_FORMAT)
    if as_json:
        write_json()


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
