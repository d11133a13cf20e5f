# SPDX-License-Identifier: Apache-2.0
"""A conversation of ten turns, sent again in whole each time and as a session: bytes sent, seconds to the first token.

    python bench/sessions.py MODEL [--turns 10] [--new 64] [--memory 96MiB] [--strangers 4] [--restart]

Three ways, turn by turn beside each other in one server: 'whole' sends everything and is held by the prefix cache like
any other (under a salt of its own, so that what the session has computed is not found), 'session' sends the new message
only and has its keys and values kept, and 'cold' is the whole conversation under a new salt each turn: what it costs
without any cache. Each is asked first in turn. Strangers between two turns fill the KV cache, which holds two
conversations. With --restart the server ends before the last turn and is started again, with a file for its blocks
(--swap-keep) and a folder of sessions.
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx

from server import free_port

SAID = "Tell me more about the river, the people who live beside it and what they do when the water rises in spring. "


Conversation = list[dict[str, str]]


@contextmanager
def served(model: Path, folder: str, memory: str) -> Iterator[httpx.Client]:
    """A server with so much KV memory; it ends in order."""
    port = free_port()
    options = f"--port {port} --served-model-name m --session-dir {folder}/talks --kv-cache-memory {memory}"
    swap = f"--swap-space 512MiB --swap-dir {folder} --swap-keep"
    command = [sys.executable, "-m", "linnet.cli.main", "serve", str(model), *options.split(), *swap.split()]
    with open(os.devnull, "w", encoding="utf-8") as silent:
        process = subprocess.Popen(command, stderr=silent)
    try:
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=600) as http:
            for _ in range(600):
                try:
                    if http.get("/health").status_code == 200:
                        break
                except httpx.TransportError:
                    time.sleep(0.1)
            yield http
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(60)


def ask(http: httpx.Client, messages: Conversation, new: int, **more: Any) -> dict[str, Any]:
    """A greedy chat request, streamed: bytes of its body, seconds to the first token, tokens found, the answer."""
    settings = {"model": "m", "max_tokens": new, "temperature": 0, "stream": True, "ignore_eos": True}
    usage = {"stream_options": {"include_usage": True}}
    body = json.dumps(settings | usage | {"messages": messages} | more).encode()
    began_s, first_s, text, found = time.perf_counter(), 0.0, "", 0
    headers = {"Content-Type": "application/json"}
    with http.stream("POST", "/v1/chat/completions", content=body, headers=headers) as response:
        for line in response.iter_lines():
            if not line.startswith("data: {"):
                continue
            event = json.loads(line.removeprefix("data: "))
            for choice in event["choices"]:
                piece = choice["delta"].get("content") or ""
                first_s = first_s or (time.perf_counter() - began_s if piece else 0.0)
                text += piece
            if event.get("usage"):
                found = event["usage"]["prompt_tokens_details"]["cached_tokens"]
    return {"bytes": len(body), "first_s": first_s, "found": found, "text": text}


def main() -> None:
    """Talk and print a line a turn."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--turns", type=int, default=10)
    parser.add_argument("--new", type=int, default=64, help="tokens of an answer")
    parser.add_argument("--memory", default="96MiB", help="of the KV cache")
    parser.add_argument("--strangers", type=int, default=0, help="requests of others between two turns")
    parser.add_argument("--restart", action="store_true", help="of the server before the last turn")
    options = parser.parse_args()
    print("| turn | way | bytes sent | first token (ms) | prompt tokens found |\n|---|---|---|---|---|")
    conversation: Conversation = []
    done = 0
    with tempfile.TemporaryDirectory() as folder:
        for until in (options.turns - 1, options.turns) if options.restart else (options.turns,):
            with served(options.model, folder, options.memory) as http:
                ask(http, [{"role": "user", "content": "Hi"}], 2)
                while done < until:
                    done += 1
                    new = {"role": "user", "content": f"{done}. {SAID}"}
                    asked: list[tuple[str, Conversation, dict[str, str]]] = [
                        ("session", [new], {"session": "talk"}),
                        ("whole", [*conversation, new], {"cache_salt": "whole"}),
                        ("cold", [*conversation, new], {"cache_salt": f"turn {done}"}),
                    ]
                    first = done % len(asked)  # each way is first in turn
                    ways = {
                        way: ask(http, said, options.new, **own) for way, said, own in asked[first:] + asked[:first]
                    }
                    assert len({one["text"] for one in ways.values()}) == 1, "one answer, however it was asked for"
                    conversation += [new, {"role": "assistant", "content": ways["whole"]["text"]}]
                    for way, one in ways.items():
                        print(f"| {done} | {way} | {one['bytes']:,} | {1000 * one['first_s']:.1f} | {one['found']} |")
                    for stranger in range(options.strangers):
                        text = f"{done} {stranger} " + SAID * 12
                        ask(http, [{"role": "user", "content": text}], 2)


if __name__ == "__main__":
    main()
