# SPDX-License-Identifier: Apache-2.0
"""What ``linnet serve`` shows on a terminal."""

import json
import logging
import shlex
import sys
from types import SimpleNamespace
from typing import Any

import pytest

from linnet.cli.serving_screen import Screen, curl
from linnet.settings import ServeConfig


def test_the_line_to_paste_is_a_command_with_a_request_in_it() -> None:
    for config in (
        ServeConfig(names=("it's",)),
        ServeConfig(names=("m",), keys=("a-secret-key",)),
        ServeConfig(names=("m",), uds="/run/socket"),
    ):
        words = shlex.split(curl(config, "http://127.0.0.1:8000"))
        body = json.loads(words[-1])
        assert body["model"] == config.names[0]
        assert ("Authorization: Bearer $LINNET_API_KEY" in words) == bool(config.keys)
        assert "a-secret-key" not in " ".join(words)
        assert ("/run/socket" in words) == bool(config.uds)


def test_it_says_model_address_context_and_memory(capsys: pytest.CaptureFixture[str]) -> None:
    served: Any = SimpleNamespace(
        facts=SimpleNamespace(kv_tokens=9088), max_model_len=2000, numerics_id="cpu/x", sampling_defaults="top_p 0.9"
    )
    predicted = SimpleNamespace(total_bytes=729_000_000)
    server: Any = SimpleNamespace(memory=SimpleNamespace(peak_bytes=lambda: 451_000_000, predicted=predicted))
    handler = logging.StreamHandler(sys.stderr)
    logging.getLogger().addHandler(handler)
    before = handler.stream
    with Screen() as screen:
        screen.begin(served, ServeConfig(names=("small",)), "http://127.0.0.1:8000", server)
        screen.status("1.0 tokens/s")
        screen.say("a [line] that stays")
    logging.getLogger().removeHandler(handler)
    assert handler.stream is before
    shown = capsys.readouterr().err
    for text in ("small", "http://127.0.0.1:8000", "2,000", "9,088", "451 MB", "729 MB", "top_p 0.9", "a [line] that"):
        assert text in shown
