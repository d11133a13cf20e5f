# SPDX-License-Identifier: Apache-2.0
"""A real server on the loopback interface, in a thread of the test process, over a digest model or a tiny Llama."""

import atexit
import functools
import json
import os
import secrets
import shutil
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import openai
from digest_executable import DigestExecutable
from tiny_llama import CONTEXT, write_tiny_llama

from linnet.api import LLM, Moderate, RequestBuilder, SamplingDefaults
from linnet.engine import CompiledGrammars, Engine, EngineThread
from linnet.process_memory import Footprint
from linnet.scheduler import SchedulerConfig
from linnet.serve import RequestLimits, ServeConfig, Server, address_of, bind, run
from linnet.text import Tokenizer

NAME = "tiny"
PATIENCE_S = float(os.environ.get("LINNET_PATIENCE_S", "20"))
"""How long an answer is waited for; more where the tests' own process may be stopped meanwhile."""
LONG = {"model": NAME, "prompt": "the rain", "max_tokens": 200, "temperature": 0, "ignore_eos": True}
"""A request that runs until it is stopped."""


class SlowDigest(DigestExecutable):
    """A digest model whose steps take ``delay_s``; set it to catch requests in the middle."""

    delay_s = 0.0

    def execute(self, batch: Any, states: Any) -> None:
        if self.delay_s:
            time.sleep(self.delay_s)
        super().execute(batch, states)


@functools.cache
def tiny_directory() -> Path:
    """The checkpoint that lends its tokenizer and template to the digest models."""
    directory = tempfile.mkdtemp(prefix="linnet-tiny-")
    atexit.register(shutil.rmtree, directory, ignore_errors=True)
    return write_tiny_llama(Path(directory))


def digest_model(moderate: Moderate | None = None, **changes: Any) -> Any:
    """A ServedModel with more to look at: real engine, scheduler and tokenizer around a digest."""
    settings = {"num_blocks": 128, "block_size": 4, "max_model_len": CONTEXT, "token_budget": 64, "max_sequences": 16}
    config = SchedulerConfig(**(settings | changes))
    tokenizer = Tokenizer.from_directory(tiny_directory())
    executable = SlowDigest(tokenizer.vocabulary_size, config.block_size)
    engine = Engine(executable, config, check=True, grammars=CompiledGrammars(lambda: requests.vocabulary))
    requests = RequestBuilder(tokenizer, engine.facts, lambda: secrets.randbits(64), moderate=moderate)
    return SimpleNamespace(
        _engine=engine,
        executable=executable,
        tokenizer=tokenizer,
        facts=engine.facts,
        requests=requests,
        connect=lambda deliver: EngineThread(engine, deliver),
        counters=engine.counters,
        footprint=Footprint(weight_bytes=0, step_bytes=0, kv_bytes=0, engine_bytes=0),
        max_model_len=config.max_model_len,
        numerics_id="digest",
        sampling_defaults=SamplingDefaults(),
        environment=None,
    )


class Running:
    """``with Running(model, ...) as server``: it answers at ``server.url`` until the block ends, then drains."""

    def __init__(self, llm: Any, limits: RequestLimits | None = None, **config: Any) -> None:
        self.llm = llm
        self.lines: list[str] = []
        self.status: int | None = None
        self.server: Server | None = None
        settings = {"names": (NAME, "other-name"), "port": 0, "shutdown_s": 10.0, "limits": limits or RequestLimits()}
        self.config = ServeConfig(**(settings | config))
        self._listener = bind(self.config)
        self.url = address_of(self._listener)
        self._ready = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def _run(self) -> None:
        model = self.llm.served() if isinstance(self.llm, LLM) else self.llm
        self.status = run(model, self._listener, self.config, self.lines.append, self._start)

    def _start(self, server: Server) -> None:
        self.server = server
        self._ready.set()

    def __enter__(self) -> "Running":
        self._thread.start()
        assert self._ready.wait(PATIENCE_S)
        return self

    def __exit__(self, *exception: object) -> None:
        self.stop()
        assert exception[0] is not None or self.status is not None

    def signal(self) -> None:
        """As if SIGTERM had come."""
        assert self.server is not None
        assert self.server.bridge.loop is not None
        self.server.bridge.loop.call_soon_threadsafe(self.server.lifecycle.signalled)

    def stop(self) -> None:
        if self._thread.is_alive():
            self.signal()
        self._thread.join(PATIENCE_S)
        self.http.close()
        assert not self._thread.is_alive(), "the server did not end"

    def openai(self, strict: bool = True, **options: Any) -> openai.OpenAI:
        if "http_client" not in options:
            options["http_client"] = httpx.Client(verify=False)
        settings = {"base_url": f"{self.url}/v1", "api_key": "none-needed", "max_retries": 0, "timeout": PATIENCE_S}
        return openai.OpenAI(**(settings | options), _strict_response_validation=strict)

    def client(self, **options: Any) -> httpx.Client:
        return httpx.Client(base_url=self.url, timeout=PATIENCE_S, verify=False, **options)

    @functools.cached_property
    def http(self) -> httpx.Client:
        """One shared client: making one costs more than most requests here."""
        return self.client(limits=httpx.Limits(max_connections=64))

    def metric(self, name: str, **labels: str) -> float:
        """The sum of a metric's series with these labels."""
        total, found = 0.0, False
        for line in self.http.get("/metrics", headers=self.headers).text.splitlines():
            if line.partition("{")[0].partition(" ")[0] != f"linnet:{name}":
                continue
            if all(f'{key}="{value}"' in line for key, value in labels.items()):
                total += float(line.rsplit(" ", 1)[1])
                found = True
        assert found, f"no metric {name}"
        return total

    @property
    def headers(self) -> dict[str, str]:
        return {"Authorization": f"Bearer {self.config.keys[0]}"} if self.config.keys else {}

    def settled(self) -> bool:
        """Every block, queue place and task is back."""
        assert self.server is not None
        admission = self.server.admission
        held = (admission.requests, admission.samples, admission.prompt_tokens, admission.body_bytes)
        return (
            held == (0, 0, 0, 0)
            and self.server.bridge.in_flight == 0
            and self.metric("num_requests_running") == 0
            and self.metric("num_requests_waiting") == 0
            and self.metric("kv_blocks_used") == 0
        )

    def wait_settled(self, within_s: float = 5.0) -> None:
        eventually(self.settled, within_s)
        if hasattr(self.llm, "_engine"):  # it runs here
            self.llm._engine.scheduler.check()


class Awake:
    """``with Awake() as awake``: ``awake.seconds`` go on only while this process can run. Whoever is stopped, or on a
    machine that sleeps, cannot tell by another clock who keeps it waiting."""

    TICK_S = 0.05

    def __init__(self) -> None:
        self._lost_s = 0.0
        self._last_s = time.monotonic()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._tick, daemon=True)

    def __enter__(self) -> "Awake":
        self._thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._ended.set()
        self._thread.join()

    @property
    def seconds(self) -> float:
        """Without the time by which ticks were late."""
        return self._last_s - self._lost_s

    def _tick(self) -> None:
        while not self._ended.wait(self.TICK_S):
            now_s = time.monotonic()
            self._lost_s += max(now_s - self._last_s - 1.0, 0.0)  # less is a busy machine, which is no excuse
            self._last_s = now_s


def eventually(condition: Callable[[], bool], within_s: float = 5.0) -> None:
    """Poll until true; fails after ``within_s``."""
    deadline = time.monotonic() + within_s
    while not condition():
        assert time.monotonic() < deadline, f"not within {within_s} s"
        time.sleep(0.005)


def events(response: httpx.Response) -> list[Any]:
    """The data events of a stream; comments are skipped, ``[DONE]`` stays a text, errors are dicts with ``error``."""
    found: list[Any] = []
    for line in response.iter_lines():
        if line.startswith("data: "):
            data = line.removeprefix("data: ")
            found.append(data if data == "[DONE]" else json.loads(data))
    return found


def text_of(server: Running, body: dict[str, Any]) -> str:
    """The text of a completion that must succeed."""
    response = server.http.post("/v1/completions", json=body, timeout=20)
    assert response.status_code == 200, response.text
    return str(response.json()["choices"][0]["text"])
