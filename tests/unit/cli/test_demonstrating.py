# SPDX-License-Identifier: Apache-2.0
"""The demo's server: one that talks much, ends early or does not end leaves no traceback and no process."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from linnet.cli import demonstrating
from linnet.cli.main import run
from linnet.demo import MODEL_DIGEST
from linnet.errors import LinnetError
from linnet.formats import CheckpointWriter

TALKATIVE = """
import http.server, json, sys
sys.stderr.write("word " * 100_000)
sys.stderr.flush()
class Answers(http.server.BaseHTTPRequestHandler):
    def answer(self):
        body = json.dumps({"choices": [{"message": {"content": "A drum."}}]}).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
    do_GET = do_POST = answer
http.server.HTTPServer(("127.0.0.1", int(sys.argv[-1])), Answers).serve_forever()
"""


def instead_of_linnet(monkeypatch: pytest.MonkeyPatch, program: str) -> list[list[str]]:
    """Start ``program`` where the demo starts ``linnet serve``; returns the commands it would have started."""
    commands: list[list[str]] = []
    start = subprocess.Popen

    def popen(command: list[str], **options: object) -> subprocess.Popen[bytes]:
        commands.append(command)
        return start([sys.executable, "-c", program, command[-1]], **options)  # type: ignore[call-overload]

    monkeypatch.setattr(demonstrating.subprocess, "Popen", popen)
    return commands


def test_a_server_that_fills_its_standard_error_still_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demonstrating._wait_until_healthy, "__defaults__", (10.0,))
    commands = instead_of_linnet(monkeypatch, TALKATIVE)
    assert demonstrating._ask_server(Path("model"), None) == "A drum."
    assert commands[0][:4] == [sys.executable, "-P", "-m", "linnet.cli.main"]


def test_a_server_that_ends_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    instead_of_linnet(monkeypatch, "raise SystemExit('no such model')")
    with pytest.raises(LinnetError, match="ended with status 1: no such model"):
        demonstrating._ask_server(Path("model"), None)


def test_a_server_that_does_not_end_is_killed() -> None:
    program = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print(flush=True); time.sleep(60)"
    server = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE)
    assert server.stdout is not None
    with server.stdout as ready:
        ready.readline()
        demonstrating._stop(server, 0.2)
    assert server.returncode == -9


def test_only_what_an_earlier_demo_made_is_replaced(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for source in ("0" * 64, MODEL_DIGEST):
        with CheckpointWriter(tmp_path / source / "W8A16-rtn") as writer:
            writer.add("weight", np.zeros((4, 4), np.float32))
            writer.commit()
            writer.publish({"model_type": "llama"}, {"fingerprint": {"source": source}})
    theirs = tmp_path / ("0" * 64) / "W8A16-rtn"
    before = {path.name: path.read_bytes() for path in theirs.iterdir()}
    assert run(["demo", "-o", str(theirs.parent)]) == 3
    assert f"{theirs}: made of another model than the demo's" in capsys.readouterr().err
    assert {path.name: path.read_bytes() for path in theirs.iterdir()} == before
    assert list(theirs.parent.iterdir()) == [theirs]
    demonstrating._check_replaceable(tmp_path / MODEL_DIGEST / "W8A16-rtn")
    demonstrating._check_replaceable(tmp_path / "nothing")
