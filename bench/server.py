# SPDX-License-Identifier: Apache-2.0
"""`linnet serve` with its engine in a process and in a thread, in turns: start to first token, tokens/s, memory.

    python bench/server.py MODEL [--rounds 5] [--clients 1,16] [--tokens 128] [--json FILE]

Every round starts a server of each kind. "Start" is from the start of the program to the answer of a request of one
token that was sent as early as a connection was accepted. Then so many clients at once stream so many greedy tokens
each, twice, of which the second counts; ratios are of neighbours in time. Memory is what belongs to the server's
processes alone (USS), summed, after that.
"""

import argparse
import asyncio
import json
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import psutil

from lines import note
from samples import summarise

KINDS = ("thread", "process")


def free_port() -> int:
    """A port that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


async def ask(port: int, body: dict[str, object]) -> bytes:
    """One request on a connection of its own; the whole answer."""
    data = json.dumps({"model": "model", "prompt": "the", "temperature": 0, "ignore_eos": True, **body}).encode()
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    head = f"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nConnection: close\r\nContent-Length: {len(data)}\r\n\r\n"  # noqa: E501
    writer.write(head.encode() + data)
    answer = await reader.read(-1)
    writer.close()
    if b" 200 " not in answer[:20]:
        raise RuntimeError(answer[-500:].decode())
    return answer


async def first_answer(port: int) -> None:
    """Until a request of one token is answered."""
    while True:
        try:
            await ask(port, {"max_tokens": 1})
            return
        except OSError:
            await asyncio.sleep(0.002)


async def tokens_per_s(port: int, clients: int, tokens: int) -> float:
    """So many streams at once."""
    body: dict[str, object] = {"max_tokens": tokens, "stream": True}
    began = time.perf_counter()
    await asyncio.gather(*(ask(port, {**body, "prompt": f"{index} the"}) for index in range(clients)))
    return clients * tokens / (time.perf_counter() - began)


def own_bytes(process: psutil.Process) -> int:
    """Memory that belongs to the server and its engine alone."""
    return sum(one.memory_full_info().uss for one in (process, *process.children(recursive=True)))


def measure(model: Path, kind: str, clients: list[int], tokens: int, more: list[str]) -> dict[str, float]:
    """One server, from its start to its end."""
    port = free_port()
    command = [sys.executable, "-m", "linnet.cli.main", "serve", str(model), "--port", str(port)]
    began = time.perf_counter()
    server = subprocess.Popen(
        [*command, "--served-model-name", "model", "--engine", kind, *more], stderr=subprocess.DEVNULL
    )
    try:
        asyncio.run(first_answer(port))
        found = {"start_s": time.perf_counter() - began}
        for count in clients:
            for _ in range(2):
                found[f"tokens_per_s_{count}"] = asyncio.run(tokens_per_s(port, count, tokens))
        found["own_bytes"] = own_bytes(psutil.Process(server.pid))
        server.send_signal(signal.SIGTERM)
        server.wait(30)
    finally:
        server.kill()
    return found


def main() -> None:
    """Print one JSON line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--clients", default="1,16")
    parser.add_argument("--tokens", type=int, default=128)
    parser.add_argument("--json", type=Path, help="append the line to this file")
    options, more = parser.parse_known_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # and the server ends too
    clients = [int(count) for count in options.clients.split(",")]
    found: dict[str, list[dict[str, float]]] = {kind: [] for kind in KINDS}
    for number in range(options.rounds):
        for kind in KINDS if number % 2 == 0 else KINDS[::-1]:
            found[kind].append(measure(options.model, kind, clients, options.tokens, more))
    line: dict[str, str] = {"model": options.model.name}
    for name in found["thread"][0]:
        for kind in KINDS:
            line[f"{name} {kind}"] = summarise([one[name] for one in found[kind]]).show()
        pairs = zip(found["process"], found["thread"], strict=True)
        line[f"{name} process/thread"] = summarise([one[name] / other[name] for one, other in pairs]).show()
    note(line, options.json)


if __name__ == "__main__":
    main()
