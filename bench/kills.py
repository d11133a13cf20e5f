# SPDX-License-Identifier: Apache-2.0
"""`linnet serve` under load while its engine is killed, again and again: who waits how long, and what is left behind.

    python bench/kills.py MODEL [--kills 100] [--streams 8] [--json FILE]

Every round: so many streams decode, the engine gets SIGKILL, and four times are taken from there: until the last stream
has read its error event, until /health says 503, until /health says 200, until the first token of a new request. At the
end: streams without an error event, processes of killed engines that are left, open files of the server before and
after, entries of /dev/shm and of the temporary directory before and after.
"""

import argparse
import asyncio
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import httpx
import psutil

from lines import note
from samples import summarise

HEALTH_S = 0.002
"""Between two questions to /health."""


class Server:
    """`linnet serve` as a process."""

    def __init__(self, model: Path, kills: int) -> None:
        command = [sys.executable, "-m", "linnet.cli.main", "serve", str(model), "--port", "0"]
        self._log = tempfile.TemporaryFile("w+")  # noqa: SIM115  as long as this object
        options = ["--engine-restarts", str(min(kills, 1000)), "--served-model-name", "model"]
        self.process = subprocess.Popen([*command, *options], stderr=self._log)
        self.url = self._address()

    def _address(self) -> str:
        while self.process.poll() is None:
            self._log.seek(0)
            line = next((line for line in self._log if " on http" in line), "")
            if line:
                return line.partition(" on ")[2].split()[0]
            time.sleep(0.05)
        raise RuntimeError("the server did not start")

    def engine(self) -> psutil.Process:
        """The engine's process that is there now."""
        while True:
            for child in psutil.Process(self.process.pid).children():
                if "linnet.api.engine_child" in child.cmdline():
                    return child
            time.sleep(0.001)

    def files(self) -> int:
        """Open files of the server's own process."""
        return psutil.Process(self.process.pid).num_fds()


async def stream(http: httpx.AsyncClient, tokens: int, begun: asyncio.Event) -> tuple[bool, float]:
    """One long answer: whether it ended with an error event, and when."""
    body = {"model": "model", "prompt": "the", "max_tokens": tokens, "ignore_eos": True, "stream": True}
    told = False
    async with http.stream("POST", "/v1/completions", json=body) as response:
        async for line in response.aiter_lines():
            if line.startswith("data: "):
                begun.set()
            told = told or line == "event: error"
    return told, time.perf_counter()


async def health(http: httpx.AsyncClient, status: int) -> float:
    """When /health first had this status."""
    while (await http.get("/health")).status_code != status:
        await asyncio.sleep(HEALTH_S)
    return time.perf_counter()


async def measure(server: Server, http: httpx.AsyncClient, streams: int, tokens: int) -> tuple[dict[str, float], int]:
    """One kill: the four times, and how many streams had no error event."""
    begun = [asyncio.Event() for _ in range(streams)]
    readers = [asyncio.create_task(stream(http, tokens, one)) for one in begun]
    await asyncio.wait_for(asyncio.gather(*(one.wait() for one in begun)), 30)
    engine = server.engine()
    asked = asyncio.create_task(health(http, 503))
    await asyncio.sleep(0)
    killed = time.perf_counter()
    os.kill(engine.pid, signal.SIGKILL)
    ends = await asyncio.gather(*readers)
    unwell = await asked
    well = await health(http, 200)
    await http.post("/v1/completions", json={"model": "model", "prompt": "the", "max_tokens": 1})
    served = time.perf_counter()
    times = {
        "error_event_s": max(at for _, at in ends) - killed,
        "health_503_s": unwell - killed,
        "health_200_s": well - killed,
        "served_s": served - killed,
    }
    return times, sum(not told for told, _ in ends)


def litter() -> int:
    """Entries of the places where programs leave things."""
    return sum(len(os.listdir(place)) for place in ("/dev/shm", tempfile.gettempdir()) if os.path.isdir(place))


async def drill(server: Server, kills: int, streams: int) -> dict[str, float | str]:
    """All rounds, in words and numbers."""
    found: dict[str, list[float]] = {}
    untold = 0
    engines: set[int] = set()
    limits = httpx.Limits(max_connections=streams + 8)
    files = server.files()
    async with httpx.AsyncClient(base_url=server.url, timeout=60, limits=limits) as http:
        tokens = (await http.get("/v1/models")).json()["data"][0]["max_model_len"] - 64
        for count in range(kills):
            engines.add(server.engine().pid)
            times, without = await measure(server, http, streams, tokens)
            untold += without
            for name, seconds in times.items():
                found.setdefault(name, []).append(seconds)
            if (count + 1) % 10 == 0:
                print(f"{count + 1} of {kills}", file=sys.stderr)
    left = {number for number in engines if psutil.pid_exists(number)}
    await asyncio.sleep(0.5)  # until the server has seen its connections close
    files_after = server.files()
    shown = {name: summarise(values).show() for name, values in found.items()}
    worst = {f"{name}_max": max(values) for name, values in found.items()}
    return {"kills": kills, "streams": streams, **shown, **worst, "streams_without_error_event": untold,
            "engines_left": len(left), "files_before": files, "files_after": files_after}  # fmt: skip


def kept(found: dict[str, float | str]) -> bool:
    """Whether the promises were: an error event within 2 s for all, /health 503 within 1 s, nothing left behind."""
    soon = float(found["error_event_s_max"]) <= 2.0 and float(found["health_503_s_max"]) <= 1.0
    nothing = found["streams_without_error_event"] == found["engines_left"] == found["exit_status"] == 0
    return soon and nothing and float(found["files_after"]) <= float(found["files_before"])


def main() -> int:
    """Run, end the server, print one JSON line; status 1 if a promise was not kept."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--streams", type=int, default=8)
    parser.add_argument("--json", type=Path, help="append the line to this file")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # and the server ends too
    before = litter()
    server = Server(options.model, options.kills)
    try:
        found = asyncio.run(drill(server, options.kills, options.streams))
        engine = server.engine().pid
        server.process.send_signal(signal.SIGTERM)
        found["exit_status"] = server.process.wait(30)
        found["engines_left"] = int(found["engines_left"]) + psutil.pid_exists(engine)
        found["litter"] = litter() - before
    finally:
        server.process.kill()
    note(found, options.json)
    return int(not kept(found))


if __name__ == "__main__":
    raise SystemExit(main())
