# SPDX-License-Identifier: Apache-2.0
"""R10: /health answers at once while a server that is a process of its own judges what takes long.

LINNET_LIVENESS_S: seconds for each kind of request (0.5).
"""

import json
import os
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any

import httpx
import pytest
from serving import PATIENCE_S
from test_server_process import process
from test_server_wire import late_s
from tiny_llama import write_tiny_llama

pytestmark = pytest.mark.alone
SECONDS = float(os.environ.get("LINNET_LIVENESS_S", "0.5"))
CLIENTS = 3
P99_S, MOST_S = 0.1, 0.5


def properties(count: int) -> dict[str, Any]:
    return {"type": "object", "properties": {f"p{number}": {"type": "string"} for number in range(count)}}


def completion(**fields: Any) -> tuple[str, dict[str, Any]]:
    return "/v1/completions", {"model": "tiny-llama", "prompt": "x", "max_tokens": 4, **fields}


def chat(*messages: str, **fields: Any) -> tuple[str, dict[str, Any]]:
    said = [{"role": "user", "content": text} for text in messages]
    return "/v1/chat/completions", {"model": "tiny-llama", "messages": said, "max_tokens": 4, **fields}


KINDS: dict[str, Callable[[int], tuple[str, dict[str, Any]]]] = {
    "a prompt of a megabyte": lambda _: completion(prompt="the rain in spain " * 60_000),
    "a prompt of a megabyte that is one word": lambda _: completion(prompt="a" * (1 << 20)),
    "a prompt of 300,000 ids": lambda _: completion(prompt=[5] * 300_000),
    "a schema of 10,000 properties": lambda _: completion(guided_json=properties(10_000)),
    "a schema as large as it may be": lambda number: completion(guided_json=properties(1500) | {"title": str(number)}),
    "a pattern that backtracks": lambda number: completion(guided_regex=f"(a+)+b{number}"),
    "a pattern that explodes": lambda number: completion(guided_regex=f"(a|b)*a(a|b){{{200 + number}}}"),
    "a chat of a megabyte": lambda _: chat("the rain in spain " * 60_000),
    "a chat of 20,000 messages": lambda _: chat(*["x"] * 20_000),
    "a chat with a megabyte for its template": lambda _: chat("x", chat_template_kwargs={"x": ["y" * 1000] * 1000}),
}
"""Each makes the next request of its kind; a grammar that is the same as before is not judged again."""
SHORT = completion()
"""What is asked as often in turns with them: more than that takes on this machine is the long one's doing."""


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    directory: Path = write_tiny_llama(tmp_path_factory.mktemp("models") / "tiny-llama")
    with process(directory) as (_, address):
        yield address


def health_s(http: httpx.Client, until_s: float) -> list[float]:
    """How long /health took, each time, the fastest first."""
    times: list[float] = []
    while time.monotonic() < until_s or len(times) < 20:
        began_s = time.monotonic()
        assert http.get("/health").status_code == 200
        times.append(time.monotonic() - began_s)
        time.sleep(0.003)
    return sorted(times)


@dataclass(frozen=True)
class Seen:
    """Of one flood: how long /health took, fastest first, the statuses of the others, and how late a thread was that
    only sleeps."""

    times: list[float]
    statuses: Counter[int]
    late_s: float

    @property
    def p99_s(self) -> float:
        return self.times[len(self.times) * 99 // 100]

    def good_beside(self, short: "Seen") -> bool:
        """Where the machine lets nobody run, nobody can answer."""
        late_s = 2 * max(self.late_s, short.late_s)
        return self.p99_s < P99_S + late_s + short.p99_s and self.times[-1] < MOST_S + late_s + short.times[-1]

    def __str__(self) -> str:
        p99, most, late = (1e3 * seconds for seconds in (self.p99_s, self.times[-1], self.late_s))
        return (
            f"{len(self.times)} answers, 99 of 100 within {p99:.0f} ms, all within {most:.0f} ms; "
            f"a sleeper was late by up to {late:.0f} ms; {dict(sorted(self.statuses.items()))}"
        )


def flooded(url: str, bodies: list[tuple[str, bytes]]) -> Seen:
    """CLIENTS send them again and again for SECONDS."""
    ended = threading.Event()
    statuses: list[int] = []

    def ask(first: int) -> None:
        with httpx.Client(base_url=url, timeout=PATIENCE_S, verify=False) as http:
            for number in count(first, CLIENTS):
                route, body = bodies[number % len(bodies)]
                with suppress(httpx.TransportError):  # refused before it was read
                    answer = http.post(route, content=body, headers={"Content-Type": "application/json"})
                    statuses.append(answer.status_code)
                if ended.is_set():
                    return

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(CLIENTS)]
    with httpx.Client(base_url=url, timeout=PATIENCE_S, verify=False) as http:
        for thread in threads:
            thread.start()
        try:
            with late_s() as late:
                times = health_s(http, time.monotonic() + SECONDS)
        finally:
            ended.set()
            for thread in threads:
                thread.join()
    return Seen(times, Counter(statuses), max(late))


@pytest.mark.parametrize("kind", KINDS)
def test_health_answers_while_what_takes_long_is_judged(url: str, kind: str) -> None:
    """What a kind of request makes the server do, it does each time: the best of five floods is judged."""
    short, *long = [(route, json.dumps(body).encode()) for route, body in (SHORT, *map(KINDS[kind], range(8)))]
    for _ in range(5):
        neighbour, seen = flooded(url, [short]), flooded(url, long)
        print(f"{kind}: {seen}; of short ones: {neighbour}")
        assert seen.statuses
        assert max(seen.statuses) < 500, seen
        if seen.good_beside(neighbour):
            return
    raise AssertionError(f"{kind}: {seen}; of short ones: {neighbour}")
