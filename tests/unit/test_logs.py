# SPDX-License-Identifier: Apache-2.0
"""Lines for machines: whatever is logged is one JSON object on one line, without what an exception says."""

import json
import logging
import os
import sys
import time
from datetime import UTC, datetime, timedelta, timezone

import pytest

from linnet.api import ENGINE_MODULE
from linnet.child_process import start_child
from linnet.engine import EngineChild
from linnet.log_queue import LineQueue
from linnet.logs import JsonFormatter, json_line


def record(message: str, *arguments: object, error: BaseException | None = None) -> logging.LogRecord:
    info = None if error is None else (type(error), error, error.__traceback__)
    return logging.LogRecord("linnet.serve", logging.ERROR, "file.py", 1, message, arguments, info)


def test_a_line_says_what_and_when_first() -> None:
    at = datetime(2026, 2, 3, 4, 5, 6, 789_999, tzinfo=UTC)
    assert json_line("ready", {"url": "é\n\u2028"}, at) == (
        '{"event": "ready", "time": "2026-02-03T04:05:06.789Z", "url": "é\\n\u2028"}'
    )
    now = datetime.fromisoformat(json.loads(json_line("x", {}))["time"])
    assert abs(now - datetime.now(timezone(timedelta(hours=2)))) < timedelta(minutes=1)


def test_a_record_is_one_line_and_an_exception_its_type_and_places() -> None:
    try:
        raise ValueError("sentinel-8271-prompt")
    except ValueError as error:
        line = JsonFormatter().format(record('%s said "no"\nTraceback', "it", error=error))
    assert "\n" not in line
    assert "sentinel-8271" not in line
    told = json.loads(line)
    assert {name: told[name] for name in ("event", "level", "logger", "message")} == {
        "event": "log", "level": "error", "logger": "linnet.serve", "message": 'it said "no"\nTraceback',
    }  # fmt: skip
    assert told["error"].startswith("ValueError in test_a_record_is_one_line")


@pytest.mark.skipif(sys.platform != "linux", reason="engines of their own run on Linux")
def test_an_engine_of_its_own_writes_as_it_is_told(capfd: pytest.CaptureFixture[str]) -> None:
    child = EngineChild(start_child(ENGINE_MODULE))
    child.tell({"log_json": True, "nothing": "else"})
    assert child.receive() is None
    child.end()
    (line,) = capfd.readouterr().err.splitlines()
    assert json.loads(line)["message"] == "the engine was told to open nothing: KeyError"


def test_lines_are_dropped_and_counted_where_nobody_reads_them() -> None:
    """And nobody waits: not who logs, not the end. Whoever reads again is told how many are missing."""
    reading, writing = os.pipe()
    lines = LineQueue(writing, most=4)
    lines.setFormatter(JsonFormatter())
    for count in range(40):
        lines.say(f"{count} " + "x" * 10_000)
        lines.handle(record("as a record"))
    assert 60 <= lines.dropped < 80
    dropped, taken = lines.dropped, 0
    with os.fdopen(reading, encoding="utf-8") as pipe:
        while "lines were dropped" not in (line := pipe.readline()):
            taken += 1
        assert json.loads(line)["message"].startswith(f"{dropped} lines were dropped")
        lines.say("the last")
        while (line := pipe.readline()) != "the last\n":
            taken += 1
        assert taken + dropped == 80
    lines.say("nobody is left")
    lines.close()
    os.close(writing)


def test_the_end_waits_a_second_for_who_reads_and_no_longer() -> None:
    reading, writing = os.pipe()
    lines = LineQueue(writing)
    lines.say("one")
    lines.close()
    assert os.read(reading, 100) == b"one\n"
    stuck = LineQueue(writing)
    for _ in range(10):
        stuck.say("x" * 20_000)
    began_s = time.monotonic()
    stuck.close()
    assert time.monotonic() - began_s < 30
    os.close(reading)
    os.close(writing)
