# SPDX-License-Identifier: Apache-2.0
"""The first hour with a real model: inspect, chat, compress, eval, serve, as a person would type it; prints everything.

    python tools/real/tour.py [--only inspect,chat,…]

Fetches SmolLM2-135M-Instruct if need be and works in out/real, whose content of last time it removes. No option is
given that is not needed: what is shown are the defaults. Exit status: that of the first command that fails.
"""

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import fetch

from linnet.user_cache import MODELS, user_cache_directory

ROOT = Path(__file__).resolve().parents[2]
LINNET = [sys.executable, "-P", "-m", "linnet.cli.main"]
MODEL, SMALL = "SmolLM2-135M-Instruct", "SmolLM2-135M-Instruct-W4"
QUESTION = "What is the capital of France?"
PORT = 8011
START_S, STOP_S = 120.0, 60.0

STEPS = {
    "inspect": ("inspect", MODEL),
    "chat": ("chat", MODEL, QUESTION),
    "compress": ("compress", MODEL, "-o", SMALL),
    "eval": ("eval", SMALL, "--against", MODEL),
    "again": ("chat", SMALL, QUESTION),
    "serve": ("serve", SMALL, "--port", str(PORT)),
}
"""Step -> the arguments of linnet."""


class FailedError(Exception):
    """A command ended with this status."""

    def __init__(self, status: int) -> None:
        super().__init__(status)
        self.status = status


def say(text: str) -> None:
    """A line of the transcript, before whatever a child prints next."""
    print(text, flush=True)


def shown(arguments: tuple[str, ...]) -> str:
    """A command line as a person types it."""
    return " ".join(["$ linnet", *(f'"{word}"' if " " in word else word for word in arguments)])


def run(arguments: tuple[str, ...], folder: Path) -> None:
    """Run a command and let it print. Raises FailedError."""
    say(shown(arguments))
    started = time.monotonic()
    status = subprocess.run([*LINNET, *arguments], cwd=folder).returncode
    if status:
        raise FailedError(status)
    say(f"# {time.monotonic() - started:.0f} s\n")


def serve(arguments: tuple[str, ...], folder: Path) -> None:
    """Start the server, ask it one question over HTTP, stop it as Ctrl-C would. Raises FailedError."""
    say(f"{shown(arguments)} &")
    server = subprocess.Popen([*LINNET, *arguments], cwd=folder)
    try:
        base = f"http://127.0.0.1:{PORT}"
        _wait(server, base)
        body = {"model": arguments[1], "messages": [{"role": "user", "content": QUESTION}], "temperature": 0}
        text = json.dumps(body)
        say(f"$ curl {base}/v1/chat/completions -H 'Content-Type: application/json' \\\n       -d '{text}'")
        request = urllib.request.Request(
            f"{base}/v1/chat/completions", text.encode(), {"Content-Type": "application/json"}
        )
        with urllib.request.urlopen(request, timeout=START_S) as answer:
            say(answer.read().decode())
    finally:
        server.send_signal(signal.SIGINT)
        try:
            status = server.wait(STOP_S)
        except subprocess.TimeoutExpired:
            server.kill()
            status = server.wait()
    if status:
        raise FailedError(status)


def _wait(server: "subprocess.Popen[bytes]", base: str) -> None:
    deadline = time.monotonic() + START_S
    while server.poll() is None and time.monotonic() < deadline:
        try:
            with urllib.request.urlopen(f"{base}/health", timeout=1):
                return
        except OSError:
            time.sleep(0.1)
    raise FailedError(server.poll() or 1)


def main() -> int:
    """Read the command line and do what it asks; returns the exit status."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--only", help=f"some of {','.join(STEPS)}, comma-separated, on what lies there already")
    only = parser.parse_args().only
    chosen = only.split(",") if only else list(STEPS)
    if unknown := [step for step in chosen if step not in STEPS]:
        parser.error(f"there is no step {unknown[0]}; accepted are {', '.join(STEPS)}")
    folder = ROOT / "out" / "real"
    try:
        model = fetch.fetch("smollm2", user_cache_directory() / MODELS)
    except fetch.FetchError as error:
        print(f"smollm2 cannot be fetched: {error}", file=sys.stderr)
        return fetch.UNREACHABLE if error.unreachable else 1
    if not only:
        shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True, exist_ok=True)
    link = folder / MODEL
    link.unlink(missing_ok=True)
    os.symlink(model, link)
    try:
        for step in chosen:
            (serve if step == "serve" else run)(STEPS[step], folder)
    except FailedError as error:
        print(f"this step failed with status {error.status}", file=sys.stderr)
        return error.status
    except urllib.error.URLError as error:
        print(f"the server did not answer: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
