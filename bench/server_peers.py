# SPDX-License-Identifier: Apache-2.0
"""`linnet serve` beside llama.cpp's and vLLM's servers over HTTP: tokens/s by clients, and a shared prefix's worth.

    python bench/server_peers.py --linnet MODEL [--llama-server PROGRAM --gguf FILE] [--vllm PYTHON --vllm-model DIR]
        [--clients 1,4,16,64] [--prompt 128] [--tokens 64] [--rounds 3] [--json FILE]

All servers are up from the beginning; in every round each one has the machine to itself in turn, the others stopped
(SIGSTOP). So many clients at once send one request each: a prompt of random ids, never repeated, and exactly so many
greedy tokens. Tokens/s are the new tokens ÷ all the time, reading the prompts included; ratios are of neighbours in
time. The shared prefix: a prompt of 1,024 ids and then another one with the same first 1,008, of one new token each.
"""

import argparse
import asyncio
import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from foreign import ForeignLoad
from lines import note
from samples import summarise
from server import ask, free_port

START_S = 300
STEP_PREFIX, STEP_PROMPT = 1008, 1024


@dataclass
class Server:
    """A program that answers OpenAI's completions on a port of its own."""

    name: str
    command: Sequence[str]
    port: int
    environment: dict[str, str] = field(default_factory=dict)
    process: subprocess.Popen[bytes] | None = None

    def start(self, log: Path) -> None:
        """Until it has answered once."""
        with log.open("wb") as file:
            environment = {**os.environ, **self.environment}
            self.process = subprocess.Popen(self.command, stdout=file, stderr=file, env=environment)
        deadline = time.monotonic() + START_S
        while True:
            with contextlib.suppress(OSError, RuntimeError):
                asyncio.run(complete(self.port, [1, 2, 3], 1))
                return
            if self.process.poll() is not None or time.monotonic() > deadline:
                raise SystemExit(f"{self.name} did not start; see {log}")
            time.sleep(0.2)

    def everyone(self) -> list[psutil.Process]:
        """The server and what it started."""
        assert self.process is not None
        first = psutil.Process(self.process.pid)
        return [first, *first.children(recursive=True)]

    @contextlib.contextmanager
    def running(self) -> Iterator[None]:
        """The machine is its own meanwhile."""
        for one in self.everyone():
            one.resume()
        try:
            yield
        finally:
            for one in self.everyone():
                one.suspend()

    def end(self) -> None:
        """With all its processes."""
        for one in reversed(self.everyone()):
            with contextlib.suppress(psutil.NoSuchProcess):
                one.send_signal(signal.SIGKILL)


async def complete(port: int, prompt: list[int], tokens: int) -> float:
    """Seconds to the whole answer; RuntimeError unless it has exactly so many tokens."""
    began = time.perf_counter()
    answer = await ask(port, {"prompt": prompt, "max_tokens": tokens})
    found = json.loads(answer[answer.index(b"{") : answer.rindex(b"}") + 1])
    if found["usage"]["completion_tokens"] != tokens:
        raise RuntimeError(answer[-500:].decode())
    return time.perf_counter() - began


class Prompts:
    """Random ids that no server has seen."""

    def __init__(self, vocabulary: int, seed: int) -> None:
        self._vocabulary, self._random = vocabulary, random.Random(seed)

    def take(self, length: int) -> list[int]:
        """One prompt."""
        return [self._random.randrange(100, self._vocabulary) for _ in range(length)]


async def tokens_per_s(port: int, prompts: list[list[int]], tokens: int) -> float:
    """All at once."""
    began = time.perf_counter()
    await asyncio.gather(*(complete(port, prompt, tokens) for prompt in prompts))
    return len(prompts) * tokens / (time.perf_counter() - began)


def shared_prefix(port: int, prompts: Prompts) -> tuple[float, float]:
    """Seconds to the token of the first and of the second prompt with the same beginning."""
    prefix = prompts.take(STEP_PREFIX)
    first, second = (prefix + prompts.take(STEP_PROMPT - STEP_PREFIX) for _ in range(2))
    return asyncio.run(complete(port, first, 1)), asyncio.run(complete(port, second, 1))


def servers(options: argparse.Namespace) -> list[Server]:
    """Linnet first, then the peers that were given."""
    most = max(options.clients)
    context = options.prompt + options.tokens + 64
    port = free_port()
    python = [sys.executable, "-m", "linnet.cli.main", "serve", str(options.linnet), "--port", str(port)]
    found = [Server("linnet", [*python, "--served-model-name", "model", "--max-num-seqs", str(most)], port)]
    if options.llama_server:
        port = free_port()
        whole = max(most * context, 2 * STEP_PROMPT)
        command = [options.llama_server, "-m", options.gguf, "--port", str(port), "-np", str(most), "-c", str(whole)]
        threads = str(psutil.cpu_count(logical=False) or os.cpu_count())
        found.append(Server("llama.cpp", [*command, "--kv-unified", "-t", threads, "-b", "2048", "-ub", "512"], port))
    if options.vllm:
        port = free_port()
        command = [options.vllm, "-m", "vllm.entrypoints.openai.api_server", "--model", options.vllm_model]
        more = ["--served-model-name", "model", "--port", str(port), "--max-num-seqs", str(most), "--dtype", "bfloat16"]
        most_tokens = ["--max-model-len", str(2 * STEP_PROMPT), "--max-num-batched-tokens", "2048"]
        environment = {"VLLM_CPU_KVCACHE_SPACE": "2", "VLLM_CPU_NUM_OF_RESERVED_CPU": "0", "HF_HUB_OFFLINE": "1"}
        environment |= {"VLLM_NO_USAGE_STATS": "1", "DO_NOT_TRACK": "1"}
        found.append(Server("vllm", [*command, *more, *most_tokens, *options.vllm_argument], port, environment))
    return found


def options_of(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--linnet", type=Path, required=True, help="a model that linnet serve opens")
    parser.add_argument("--llama-server", help="llama.cpp's llama-server")
    parser.add_argument("--gguf", help="what it opens")
    parser.add_argument("--vllm", help="the interpreter of an environment with vLLM")
    parser.add_argument("--vllm-model", help="what it opens")
    parser.add_argument("--vllm-argument", action="append", default=[], help="one more argument of its server")
    parser.add_argument("--clients", type=lambda text: [int(one) for one in text.split(",")], default="1,4,16,64")
    parser.add_argument("--prompt", type=int, default=128, help="tokens of each prompt")
    parser.add_argument("--tokens", type=int, default=64, help="new tokens of each answer")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--vocabulary", type=int, default=32000, help="prompts are ids below it")
    parser.add_argument("--logs", type=Path, default=Path("scratch"), help="where the servers' output goes")
    parser.add_argument("--json", type=Path, help="append the lines to this file")
    options = parser.parse_args(arguments)
    for program, model in (("llama_server", "gguf"), ("vllm", "vllm_model")):
        if bool(getattr(options, program)) != bool(getattr(options, model)):
            parser.error(f"--{program.replace('_', '-')} and --{model.replace('_', '-')} belong together")
    return options


def main() -> None:
    """One JSON line for each number of clients, one for the shared prefix."""
    options = options_of()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    options.logs.mkdir(parents=True, exist_ok=True)
    prompts = Prompts(options.vocabulary, seed=1)
    known: list[Server] = []
    try:
        for server in servers(options):
            known.append(server)
            server.start(options.logs / f"server_{server.name}.log")
            with server.running():
                asyncio.run(tokens_per_s(server.port, [prompts.take(options.prompt) for _ in range(4)], 8))
        for clients in options.clients:
            rates: dict[str, list[float]] = {server.name: [] for server in known}
            foreign = 0.0
            for number in range(options.rounds):
                for server in known if number % 2 == 0 else known[::-1]:
                    asked = [prompts.take(options.prompt) for _ in range(clients)]
                    with server.running():
                        load = ForeignLoad()
                        rates[server.name].append(asyncio.run(tokens_per_s(server.port, asked, options.tokens)))
                        foreign = max(foreign, load.cores())
            line = {"clients": clients, **shown(rates, "tokens_per_s"), "most foreign cores": f"{foreign:.2f}"}
            note(line, options.json)
        first: dict[str, list[float]] = {server.name: [] for server in known}
        second: dict[str, list[float]] = {server.name: [] for server in known}
        for _ in range(options.rounds):
            for server in known:
                with server.running():
                    times = shared_prefix(server.port, prompts)
                first[server.name].append(times[0])
                second[server.name].append(times[1])
        note({"prefix": STEP_PREFIX, **gained(first, second)}, options.json)
    finally:
        for server in known:
            server.end()


def shown(rates: dict[str, list[float]], what: str) -> dict[str, str]:
    """Each server's rate, and ours as so many times each peer's."""
    ours = rates["linnet"]
    found = {f"{name} {what}": summarise(values).show() for name, values in rates.items()}
    for name, values in rates.items():
        if name != "linnet":
            found[f"linnet/{name}"] = summarise(a / b for a, b in zip(ours, values, strict=True)).show()
    return found


def gained(first: dict[str, list[float]], second: dict[str, list[float]]) -> dict[str, str]:
    """How many times sooner the second one's token comes."""
    found = {}
    for name, values in first.items():
        found[f"{name} first_s"] = summarise(values).show()
        found[f"{name} second_s"] = summarise(second[name]).show()
        found[f"{name} first/second"] = summarise(a / b for a, b in zip(values, second[name], strict=True)).show()
    return found


if __name__ == "__main__":
    main()
