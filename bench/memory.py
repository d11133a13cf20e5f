# SPDX-License-Identifier: Apache-2.0
"""Peak memory of `linnet serve`: what its first line predicts, what its processes had resident at the end.

    python bench/memory.py MODEL... [--kv-cache-memory 64MiB] [--engine process] [--json FILE]

Every block of the KV cache is written (prompts that share nothing, longer than a step) and the prompt with the most
logits that a step holds is scored. VmHWM of both processes, pages of mapped weights included. One JSON line a model.
"""

import argparse
import json
import signal
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import IO, Any

import httpx

from lines import note

CONTEXT = 1024
PROMPT, NEW_TOKENS = 640, 4
"""A prompt is longer than the tokens of one step."""

IN_TURNS = 16


class Server:
    """`linnet serve --log-format json` as a process; ``ready`` is its first line."""

    def __init__(self, model: Path, options: list[str]) -> None:
        command = [sys.executable, "-m", "linnet.cli.main", "serve", str(model), "--port", "0"]
        command += ["--served-model-name", "model", "--log-format", "json", *options]
        self._lines: list[dict[str, Any]] = []
        self._ready = threading.Event()
        self.process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
        assert self.process.stderr is not None
        self._reader = threading.Thread(target=self._read, args=(self.process.stderr,))
        self._reader.start()
        self._ready.wait()
        self.ready = self.said("ready")

    def _read(self, stream: IO[str]) -> None:
        for line in stream:
            if line.startswith("{"):
                self._lines.append(json.loads(line))
                self._ready.set()
            else:
                sys.stderr.write(line)
        self._ready.set()

    def said(self, event: str) -> dict[str, Any]:
        """The line of an event; RuntimeError if there was none."""
        for line in self._lines:
            if line["event"] == event:
                return line
        raise RuntimeError(f"the server said nothing of {event}")

    def end(self) -> dict[str, Any]:
        """Its last line."""
        self.process.send_signal(signal.SIGTERM)
        self.process.wait(60)
        self._reader.join()
        return self.said("ended")


def fill(server: Server) -> None:
    """Write every block, then score a prompt."""
    ready = server.ready
    tokens = min(PROMPT, ready["max_model_len"] - NEW_TOKENS)
    with httpx.Client(base_url=ready["url"], timeout=600) as http:
        most = http.post("/tokenize", json={"prompt": "the"}).json()["tokens"][0] + 1

        def ask(index: int, **more: Any) -> None:
            ids = [(index * 31 + place * 7 + place // 11) % max(most, 50) for place in range(tokens)]
            body = {"model": "model", "prompt": ids, "max_tokens": NEW_TOKENS, "ignore_eos": True, **more}
            http.post("/v1/completions", json=body).raise_for_status()

        with ThreadPoolExecutor(IN_TURNS) as threads:
            list(threads.map(ask, range(ready["kv_tokens"] // tokens + 2)))
        ask(0, echo=True, logprobs=5)


def measure(model: Path, options: list[str]) -> dict[str, Any]:
    """Predicted and measured bytes of one model."""
    server = Server(model, options)
    try:
        fill(server)
        ended = server.end()
    finally:
        server.process.kill()
    predicted, measured = ended["predicted_memory_bytes"], ended["peak_memory_bytes"]
    shown = {"model": model.name, "predicted_bytes": predicted, "measured_bytes": measured}
    return shown | {"measured_over_predicted": round(measured / predicted, 4)} | server.ready["predicted_memory"]


def main() -> None:
    """Print one JSON line a model."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", type=Path, nargs="+", metavar="MODEL")
    parser.add_argument("--kv-cache-memory", default="64MiB")
    parser.add_argument("--engine", default="process")
    parser.add_argument("--json", type=Path, help="append the lines to this file")
    options = parser.parse_args()
    serve = ["--kv-cache-memory", options.kv_cache_memory, "--engine", options.engine, "--max-model-len", str(CONTEXT)]
    for model in options.models:
        note(measure(model, serve), options.json)


if __name__ == "__main__":
    main()
