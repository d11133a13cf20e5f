# SPDX-License-Identifier: Apache-2.0
"""``linnet chat`` as a person meets it: on a terminal, through a pipe, with one question."""

import json
import os
import pty
import re
import select
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from test_command_line import linnet
from tiny_llama import write_tiny_llama

PATIENCE_S = 60.0


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_llama(tmp_path_factory.mktemp("model") / "tiny")


class Terminal:
    """A program on a pseudo-terminal; what it shows is read until an awaited text comes."""

    def __init__(self, *arguments: str) -> None:
        self._ours, theirs = pty.openpty()
        environment = {"PATH": "/usr/bin:/bin", "TERM": "dumb", "NO_COLOR": "1", "PYTHONPATH": ":".join(sys.path)}
        command = [sys.executable, "-m", "linnet.cli.main", *arguments]
        self.process = subprocess.Popen(
            command, stdin=theirs, stdout=theirs, stderr=theirs, env=environment, start_new_session=True
        )
        os.close(theirs)
        self.shown = ""

    def __enter__(self) -> "Terminal":
        return self

    def __exit__(self, *exception: object) -> None:
        self.process.kill()
        self.process.wait()
        os.close(self._ours)

    def type(self, line: str) -> None:
        os.write(self._ours, f"{line}\n".encode())

    def until(self, pattern: str) -> str:
        """What was shown since the last call, up to and with ``pattern``."""
        deadline = time.monotonic() + PATIENCE_S
        while (match := re.search(pattern, self.shown)) is None:
            assert time.monotonic() < deadline, f"{pattern!r} does not come; shown: {self.shown!r}"
            if select.select([self._ours], [], [], 0.1)[0]:
                try:
                    self.shown += os.read(self._ours, 65536).decode(errors="replace")
                except OSError:
                    pytest.fail(f"the program left; shown: {self.shown!r}")
        shown, self.shown = self.shown[: match.end()], self.shown[match.end() :]
        return shown

    def ended(self) -> int:
        return self.process.wait(PATIENCE_S)


def test_a_conversation_on_a_terminal(model: Path, tmp_path: Path) -> None:
    kept = tmp_path / "kept.json"
    with Terminal("chat", str(model), "--max-tokens", "5", "--threads", "1") as terminal:
        assert "tiny, context 256 tokens" in terminal.until(r">>> ")
        terminal.type("/help")
        assert "/system TEXT" in terminal.until(r">>> ")
        terminal.type("/system be brief")
        terminal.until(r"the system text is: be brief[^>]*>>> ")
        terminal.type("the cat")
        terminal.until(r"\n>>> ")
        terminal.type("/nonsense")
        assert "there is no command /nonsense; /help lists them" in terminal.until(r"\n>>> ")
        terminal.type(f"/save {kept}")
        terminal.until(r"3 messages are in[^>]*>>> ")
        terminal.type(f"/save {kept}")
        assert "exists already" in " ".join(terminal.until(r"\n>>> ").split())
        terminal.type("/quit")
        assert terminal.ended() == 0
    messages = json.loads(kept.read_text(encoding="utf-8"))["messages"]
    assert [message["role"] for message in messages] == ["system", "user", "assistant"]
    assert messages[1]["content"] == "the cat"
    assert messages[2]["content"]


@pytest.mark.real
def test_ctrl_c_ends_the_answer_and_not_the_program(real_model: Path) -> None:
    with Terminal("chat", str(real_model), "--threads", "1", "--max-model-len", "2048", "--no-tile-cache") as terminal:
        terminal.until(r">>> ")
        terminal.type("Write a very long story about a dog, with many chapters.")
        terminal.until(r"chapters\.\s+(\S+\s+){8}")
        terminal.process.send_signal(signal.SIGINT)
        assert len(terminal.until(r"the answer was interrupted\s+>>> ")) < 3000
        terminal.type("/reset")
        terminal.until(r"forgotten\s+>>> ")
        terminal.type("What is the capital of France?")
        assert "The capital of France is Paris." in terminal.until(r"Paris\.\s+>>> ")
        time.sleep(1)  # CPython's readline sleeps through a signal that comes between its prompt and its select
        terminal.process.send_signal(signal.SIGINT)
        terminal.until(r"/quit leaves\s+>>> ")
        terminal.type("\x04")
        assert terminal.ended() == 0


@pytest.mark.real
def test_one_question_and_a_pipe(real_model: Path) -> None:
    answer = "The capital of France is Paris.\n"
    question = "What is the capital of France?"
    for arguments in (("chat", str(real_model), question), ("run", "-m", str(real_model), "-p", question)):
        asked = linnet(*arguments, "--max-model-len", "1K", "--no-tile-cache")
        assert (asked.returncode, asked.stdout) == (0, answer), asked.stderr
    piped = linnet(
        "chat", str(real_model), "--max-model-len", "1K", "--no-tile-cache", stdin=f"{question}\n\n/quit\nx\n"
    )
    assert (piped.returncode, piped.stdout) == (0, answer), piped.stderr


def test_a_full_context_is_said_and_the_next_line_is_taken(model: Path) -> None:
    result = linnet("chat", str(model), "--max-tokens", "3", stdin=f"{'the cat ' * 200}\n/reset\nthe cat\n")
    said = " ".join(result.stderr.split())
    assert result.returncode == 0, result.stderr
    assert "tokens with this message, and the context holds 256: /reset begins a new one" in said
    assert "the conversation is forgotten" in said
    assert "ended after 3 tokens (--max-tokens)" in said


def test_a_base_model_is_pointed_to_generate(tmp_path: Path) -> None:
    base = write_tiny_llama(tmp_path / "base")
    config = json.loads((base / "tokenizer_config.json").read_text())
    del config["chat_template"]
    (base / "tokenizer_config.json").write_text(json.dumps(config))
    result = linnet("chat", str(base), "hello")
    assert (result.returncode, result.stdout) == (2, "")
    assert result.stderr.count("\n") == 1
    assert "has no chat template" in result.stderr
    assert f"linnet generate {base}" in result.stderr
