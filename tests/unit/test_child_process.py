# SPDX-License-Identifier: Apache-2.0
"""A child obeys its parent, outlives it never, and inherits nothing."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from linnet.child_process import child_environment, how_it_ended, start_child

CHILD = """
import os, time
def main(connection):
    own = sorted(os.listdir("/proc/self/fd"))
    connection.sendall((" ".join(own) + "\\n").encode())
    if os.environ.get("CHILD_READS"):
        connection.recv(1)
        os._exit(0)
    time.sleep(600)
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "sleeping_child.py").write_text(CHILD)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    return tmp_path


def test_it_inherits_nothing_but_its_socket_and_ends_with_a_word(folder: Path) -> None:
    with open(folder / "sleeping_child.py") as held:
        os.set_inheritable(held.fileno(), True)
        child = start_child("sleeping_child")
        own = child.connection.recv(100).decode().split()
        assert len(own) == 5  # standard streams, the socket, and the listing itself
        child.kill()
        assert child.end().startswith("was killed by signal 9 (SIGKILL); unless somebody did that, memory ran out")
    assert child.end().startswith("was killed")  # idempotent


def test_a_child_that_reads_ends_with_the_conversation(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CHILD_READS", "1")
    child = start_child("sleeping_child")
    child.connection.recv(100)
    assert child.end() == "ended with status 0"


def test_it_is_told_no_secrets() -> None:
    own = {"PATH": "/bin", "HOME": "/", "LC_ALL": "C", "OMP_NUM_THREADS": "2", "PYTHONPATH": "."}
    secrets = {"HF_TOKEN": "hf_x", "LINNET_API_KEY": "sk-x", "AWS_SECRET_ACCESS_KEY": "x", "OPENAI_API_KEY": "x"}
    assert child_environment(own | secrets) == own


def test_it_imports_nothing_from_the_working_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "sleeping_child.py").write_text(CHILD)
    monkeypatch.chdir(tmp_path)
    child = start_child("sleeping_child")
    assert child.connection.recv(100) == b""
    assert child.end() == "ended with status 1"


PARENT = """
import sys, time
from linnet.child_process import start_child
child = start_child("sleeping_child")
child.connection.recv(100)
print(child.pid, flush=True)
time.sleep(600)
"""


@pytest.mark.parametrize("reads", ["", "1"])
def test_a_parent_that_is_killed_leaves_no_orphan(folder: Path, reads: str) -> None:
    environment = {**os.environ, "CHILD_READS": reads}
    with subprocess.Popen([sys.executable, "-c", PARENT], stdout=subprocess.PIPE, text=True, env=environment) as parent:
        assert parent.stdout is not None
        number = int(parent.stdout.readline())
        assert os.path.exists(f"/proc/{number}")
        parent.kill()
    deadline = time.monotonic() + 5
    while os.path.exists(f"/proc/{number}") and "zombie" not in Path(f"/proc/{number}/status").read_text():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_ends_in_words() -> None:
    assert how_it_ended(3) == "ended with status 3"
    assert how_it_ended(-signal.SIGSEGV) == "was killed by signal 11 (SIGSEGV)"
    assert "file of the model" in how_it_ended(-signal.SIGBUS)
    assert how_it_ended(-63) == "was killed by signal 63"
