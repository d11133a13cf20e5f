# SPDX-License-Identifier: Apache-2.0
"""An engine in a process of its own, as the measuring side sees it: ``peers/worker.py`` behind two pipes."""

import contextlib
import json
import os
import select
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

WORKER = Path(__file__).resolve().parent / "peers" / "worker.py"
PATIENCE_S = 900.0
"""The longest an answer may take: vLLM compiles for a minute, a slow engine reads 8,192 tokens for another."""

THREADS = len(os.sched_getaffinity(0))


class WorkerError(Exception):
    """The worker ended early or did not answer; the text ends with what it said last."""


def command(python: str, adapter: str, model: Path, settings: Mapping[str, Any]) -> list[str]:
    """-P keeps the adapters' folder from hiding the packages they adapt."""
    return [python, "-P", str(WORKER), adapter, str(model), json.dumps(dict(settings))]


class EngineProcess:
    """One adapter with one model. Use as a context manager; leaving it ends the process."""

    def __init__(self, adapter: str, model: Path, log: Path, python: str = sys.executable, **settings: Any) -> None:
        """``settings``: see adapters/__init__.py; sensible ones for short prompts are the default."""
        settings = {"threads": THREADS, "context_tokens": 1024, "max_sequences": 16, **settings}
        self.log = log
        variables = dict(os.environ)
        preload = Path(python).parents[1] / "lib" / "libiomp5.so"
        if adapter == "vllm" and preload.exists():
            variables["LD_PRELOAD"] = str(preload)
        with log.open("ab") as file:
            self._process = subprocess.Popen(
                command(python, adapter, model, settings),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=file,
                env=variables,
            )
        try:
            self.first_token_s = float(self._read()["first_token_s"])
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> "EngineProcess":
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def generate(self, prompt: int, new: int, sequences: int = 1) -> dict[str, float]:
        """first_s, total_s and peak_rss_bytes of such a request."""
        return self.ask({"prompt": prompt, "new": new, "sequences": sequences})

    def ask(self, request: Mapping[str, Any]) -> dict[str, Any]:
        """Any request of worker.py."""
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # the reading below says why
            self._process.stdin.write(json.dumps(dict(request)).encode() + b"\n")
            self._process.stdin.flush()
        return self._read()

    def close(self) -> None:
        """End the process; one that does not end by itself is killed."""
        if self._process.stdin is not None and not self._process.stdin.closed:
            with contextlib.suppress(BrokenPipeError):
                self._process.stdin.close()
        try:
            self._process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def _read(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        ready, _, _ = select.select([self._process.stdout], [], [], PATIENCE_S)
        line = self._process.stdout.readline() if ready else b""
        if line:
            return dict(json.loads(line))
        state = "ended early" if ready else f"did not answer in {PATIENCE_S:.0f} s"
        said = [text for text in self.log.read_text(errors="replace").splitlines() if text.strip()]
        raise WorkerError(f"{' '.join(self._process.args[3:5])} {state}: {said[-1] if said else 'it said nothing'}")  # type: ignore[index]
