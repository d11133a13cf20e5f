# SPDX-License-Identifier: Apache-2.0
"""``linnet serve`` as a process: start line, keys from file and environment, drain on signals, exit status."""

import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest
from tiny_llama import write_tiny_llama

pytestmark = pytest.mark.alone
START_S = 60.0


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_llama(tmp_path_factory.mktemp("models") / "tiny-llama")


@contextmanager
def process(
    directory: Path, *options: str, environment: dict[str, str] | None = None, name: str = "tiny-llama"
) -> Iterator[tuple["subprocess.Popen[str]", str]]:
    """A started server and its address; killed at the end whatever happened."""
    command = [sys.executable, "-m", "linnet.cli.main", "serve", str(directory), "--kv-cache-memory", "1MiB"]
    started = subprocess.Popen(
        [*command, "--port", "0", *options],
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, **(environment or {})},
    )
    timer = threading.Timer(START_S, started.kill)
    timer.start()
    try:
        assert started.stderr is not None
        line = ""
        while f"{name} on " not in line:
            line = started.stderr.readline()
            assert line, "the server did not start"
        timer.cancel()
        address = re.search(r" on (\S+)", line)
        assert address is not None
        assert "context 256" in line
        assert "KV cache" in line
        yield started, address.group(1)
    finally:
        timer.cancel()
        started.kill()
        started.wait(10)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_drains_and_exits_with_zero(directory: Path, number: signal.Signals) -> None:
    body = {"model": "tiny-llama", "prompt": "the", "max_tokens": 240, "ignore_eos": True, "stream": True}
    with process(directory) as (server, url):
        with httpx.Client(base_url=url, timeout=30) as http:
            assert http.get("/health").json() == {"status": "ok"}
            with http.stream("POST", "/v1/completions", json=body) as response:
                lines = response.iter_lines()
                next(lines)
                server.send_signal(number)
                rest = list(lines)
        assert server.wait(20) == 0
    assert rest[-2] == "data: [DONE]"


def test_an_idle_server_leaves_at_once(directory: Path) -> None:
    with process(directory) as (server, _):
        server.send_signal(signal.SIGTERM)
        began_s = time.monotonic()
        assert server.wait(20) == 0
        assert time.monotonic() - began_s < 5.0


def test_keys_come_from_a_file_and_the_environment(directory: Path, tmp_path: Path) -> None:
    keys = tmp_path / "keys"
    keys.write_text("# of the team\nkey-of-the-file\n")
    secret = {"LINNET_API_KEY": "key-of-the-environment", "HF_TOKEN": "key-of-the-hub"}
    with process(directory, "--api-key-file", str(keys), environment=secret) as (server, url):
        assert b"key-of" not in Path(f"/proc/{engine_of(server)}/environ").read_bytes()
        assert httpx.get(f"{url}/v1/models").status_code == 401
        for key in ("key-of-the-file", "key-of-the-environment"):
            assert httpx.get(f"{url}/v1/models", headers={"Authorization": f"Bearer {key}"}).status_code == 200


def test_a_unix_socket(directory: Path, tmp_path: Path) -> None:
    path = tmp_path / "socket"
    with process(directory, "--uds", str(path)) as (server, url):
        assert url == f"unix:{path}"
        assert path.stat().st_mode & 0o077 == 0
        with httpx.Client(transport=httpx.HTTPTransport(uds=str(path)), base_url="http://localhost") as http:
            assert http.get("/health").status_code == 200
        server.send_signal(signal.SIGTERM)
        assert server.wait(20) == 0
    assert not path.exists()


def refusal(*options: str) -> tuple[int, str]:
    command = [sys.executable, "-m", "linnet.cli.main", "serve", *options]
    environment = {name: value for name, value in os.environ.items() if name != "LINNET_API_KEY"}
    done = subprocess.run(command, capture_output=True, text=True, timeout=START_S, env=environment, check=False)
    return done.returncode, done.stderr


def test_what_cannot_be_served_is_one_sentence(directory: Path, tmp_path: Path) -> None:
    status, text = refusal(str(directory), "--host", "0.0.0.0")
    assert status == 2
    assert "API key" in text
    assert "Traceback" not in text
    status, text = refusal(str(directory), "--api-key-file", str(tmp_path / "missing"))
    assert status == 2
    assert "Traceback" not in text
    with process(directory) as (_, url):
        status, text = refusal(str(directory), "--port", url.rsplit(":", 1)[1])
    assert status == 2
    assert "in use" in text


def test_a_model_that_does_not_load_leaves_no_socket_file(directory: Path, tmp_path: Path) -> None:
    path = tmp_path / "socket"
    status, text = refusal(str(directory), "--uds", str(path), "--max-model-len", "1M")
    assert status == 2
    assert "Traceback" not in text
    assert not path.exists()


def test_serving_on_a_cpu_never_imports_torch(directory: Path) -> None:
    unused = ("torch", "transformers", "linnet.models", "linnet.backends.cpu")  # the engine's process has the last two
    code = f"import sys, linnet.serve; print([n for n in {unused!r} if n in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


STUCK = """
import sys, time
import linnet.engine.runner
launch = linnet.engine.runner.Runner.launch
def stuck(*arguments):
    time.sleep(60)
    launch(*arguments)
linnet.engine.runner.Runner.launch = stuck
from linnet.cli.main import main
sys.argv[0] = "linnet"
main()
"""


def engine_of(server: "subprocess.Popen[str]") -> int:
    """The process id of the server's engine."""
    children = Path(f"/proc/{server.pid}/task/{server.pid}/children").read_text().split()
    children += [
        child
        for task in Path(f"/proc/{server.pid}/task").iterdir()
        for child in (task / "children").read_text().split()
        if child not in children
    ]
    (number,) = (int(child) for child in children if b"linnet.api.engine_child" in _command_line(child))
    return number


def _command_line(number: str) -> bytes:
    try:
        return Path(f"/proc/{number}/cmdline").read_bytes()
    except OSError:
        return b""


def within(seconds: float, condition: Callable[[], bool]) -> float:
    """Seconds until true; fails after so many."""
    began_s = time.monotonic()
    while not condition():
        assert time.monotonic() - began_s < seconds, f"not within {seconds} s"
        time.sleep(0.01)
    return time.monotonic() - began_s


def gone(number: int) -> bool:
    try:
        return "zombie" in Path(f"/proc/{number}/status").read_text()
    except OSError:
        return True


BODY = {"model": "tiny-llama", "prompt": "the", "max_tokens": 240, "ignore_eos": True, "temperature": 0}


def test_an_engine_that_is_killed_is_told_to_everybody_and_comes_back(directory: Path) -> None:
    with process(directory) as (server, url), httpx.Client(base_url=url, timeout=30) as http:
        whole = http.post("/v1/completions", json=BODY).json()["choices"][0]["text"]
        for _ in range(2):
            with http.stream("POST", "/v1/completions", json={**BODY, "stream": True, "n": 8}) as response:
                lines = response.iter_lines()
                next(lines)
                number = engine_of(server)
                os.kill(number, signal.SIGKILL)
                killed_s = time.monotonic()
                rest = list(lines)
            assert time.monotonic() - killed_s < 2.0
            assert "event: error" in rest
            assert "data: [DONE]" not in rest
            seen = http.get("/health")
            if seen.status_code != 200:  # it may be back already
                assert (seen.status_code, seen.json()["status"]) == (503, "restarting")
                assert seen.headers["retry-after"]
            refused = http.post("/v1/completions", json=BODY)
            assert refused.status_code in (200, 503)
            assert refused.status_code == 200 or refused.headers["retry-after"]
            within(START_S, lambda: http.get("/health").status_code == 200)
            assert http.post("/v1/completions", json=BODY).json()["choices"][0]["text"] == whole
            assert gone(number)
        metrics = http.get("/metrics").text
        assert 'linnet:engine_restarts_total{model_name="tiny-llama"} 2.0' in metrics
        assert "engine_process_resident_memory_bytes" in metrics
        server.send_signal(signal.SIGTERM)
        last = engine_of(server)
        assert server.wait(20) == 0
        assert gone(last)


def test_a_request_that_was_lost_is_not_to_be_sent_again(directory: Path) -> None:
    """It may be what ended the engine: ordinary clients, which repeat what is 503, would end the next one with it."""
    with process(directory) as (server, url), httpx.Client(base_url=url, timeout=30) as http:
        killer = threading.Timer(0.3, lambda: os.kill(engine_of(server), signal.SIGKILL))
        killer.start()
        lost = http.post("/v1/completions", json={**BODY, "n": 32})
        killer.join()
        assert (lost.status_code, lost.json()["error"]["code"]) == (503, "engine_lost")
        assert lost.headers["x-should-retry"] == "false"
        assert "retry-after" not in lost.headers


def test_a_server_whose_engine_dies_too_often_ends(directory: Path) -> None:
    with process(directory, "--engine-restarts", "0") as (server, url):
        assert httpx.get(f"{url}/health").status_code == 200
        os.kill(engine_of(server), signal.SIGKILL)
        assert server.wait(20) == 1
        assert server.stderr is not None
        text = server.stderr.read()
    assert "killed by signal 9 (SIGKILL); unless somebody did that, memory ran out" in text
    assert "Traceback" not in text


def test_a_server_that_is_killed_leaves_no_engine(directory: Path) -> None:
    with process(directory) as (server, _):
        number = engine_of(server)
        server.kill()
        within(5.0, lambda: gone(number))


def test_an_engine_that_hangs_cannot_hold_up_the_end(directory: Path) -> None:
    with process(directory, "--shutdown-timeout", "1") as (server, url):
        number = engine_of(server)
        os.kill(number, signal.SIGSTOP)
        with pytest.raises(httpx.ReadTimeout):
            httpx.post(f"{url}/v1/completions", json=BODY, timeout=0.5)
        began_s = time.monotonic()
        server.send_signal(signal.SIGTERM)
        assert server.wait(20) == 1
        assert time.monotonic() - began_s < 9.0
        assert gone(number)


def test_the_engine_can_be_a_thread(directory: Path) -> None:
    with process(directory, "--engine", "thread") as (server, url):
        assert httpx.post(f"{url}/v1/completions", json=BODY, timeout=30).status_code == 200
        assert not Path(f"/proc/{server.pid}/task/{server.pid}/children").read_text().split()
        assert "engine_process" not in httpx.get(f"{url}/metrics").text
        server.send_signal(signal.SIGINT)
        assert server.wait(20) == 0
    status, text = refusal(str(directory), "--engine", "spaceship")
    assert status == 2
    assert "accepted: process, thread" in text


def test_a_step_that_does_not_end_is_left_behind(directory: Path, tmp_path: Path) -> None:
    path = tmp_path / "socket"
    command = [sys.executable, "-c", STUCK, "serve", str(directory), "--kv-cache-memory", "1MiB", "--uds", str(path)]
    command += ["--engine", "thread", "--shutdown-timeout", "6"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as server:
        try:
            assert server.stderr is not None
            assert any("tiny-llama on " in line for line in iter(server.stderr.readline, ""))
            body = {"model": "tiny-llama", "prompt": "the", "max_tokens": 5}
            with httpx.Client(transport=httpx.HTTPTransport(uds=str(path)), base_url="http://localhost") as http:
                with pytest.raises(httpx.ReadTimeout):
                    http.post("/v1/completions", json=body, timeout=0.5)
                began_s = time.monotonic()
                server.send_signal(signal.SIGTERM)
                assert server.wait(20) == 1
                assert time.monotonic() - began_s < 9.0
            assert "a step has not ended" in server.stderr.read()
            assert not path.exists()
        finally:
            server.kill()


def test_swapping_in_a_process_changes_no_answer(directory: Path, tmp_path: Path) -> None:
    """Room for one context and more requests than that: with a swap file in an engine of its own, as in a thread
    without. The file is seen by nobody."""
    prompts = [[(7 * index + 3 * place) % 90 + 3 for place in range(120)] for index in range(6)]
    body = {"model": "tiny-llama", "max_tokens": 30, "temperature": 0, "ignore_eos": True, "prompt": prompts}
    space = ["--swap-space", "1MiB", "--swap-dir", str(tmp_path)]
    answers = []
    for options in (["--engine", "process", *space], ["--engine", "thread"]):
        with process(directory, "--kv-cache-memory", "140KiB", *options) as (_, url):
            for _ in range(2):
                answer = httpx.post(f"{url}/v1/completions", json=body, timeout=60).json()
                answers.append([choice["text"] for choice in answer["choices"]])
            page = httpx.get(f"{url}/metrics").text
            counts = dict(re.findall(r"^linnet:(swap\w+)\{[^}]*\} (\S+)", page, re.MULTILINE))
            assert (float(counts["swap_blocks_total"]) > 0) == ("process" in options), counts
            assert (float(counts["swapped_out_blocks_total"]) > 0) == ("process" in options), counts
            assert list(tmp_path.iterdir()) == []
    assert answers[0] == answers[1] == answers[2] == answers[3]


class Talking:
    """A client of one key in one session, who knows the whole conversation and asks the plain server for it too."""

    def __init__(self, url: str, plain: str, key: str) -> None:
        self._http = httpx.Client(base_url=url, timeout=60, headers={"Authorization": f"Bearer {key}"})
        self._plain, self.conversation = plain, list[dict[str, str]]()

    def say(self, text: str, url: str | None = None) -> int:
        """A turn, which must be what the whole conversation gets; returns how many tokens were found again."""
        if url is not None:
            self._http.base_url = httpx.URL(url)
        new = {"role": "user", "content": text}
        settings = {"model": "tiny-llama", "max_tokens": 12, "temperature": 0}
        mine = self._http.post("/v1/chat/completions", json=settings | {"messages": [new], "session": "same"}).json()
        whole = settings | {"messages": [*self.conversation, new]}
        plain = httpx.post(f"{self._plain}/v1/chat/completions", json=whole, timeout=60).json()
        answer = plain["choices"][0]["message"]
        assert mine["choices"][0]["message"] == answer
        self.conversation += [new, {"role": "assistant", "content": answer["content"]}]
        return int(mine["usage"]["prompt_tokens_details"]["cached_tokens"])

    def lose(self, server: "subprocess.Popen[str]") -> None:
        """A turn in which the engine is killed is no turn."""
        body = {
            "model": "tiny-llama",
            "max_tokens": 8,
            "messages": [{"role": "user", "content": "x"}],
            "session": "same",
        }
        os.kill(engine_of(server), signal.SIGSTOP)
        killer = threading.Timer(0.5, os.kill, (engine_of(server), signal.SIGKILL))
        killer.start()
        lost = self._http.post("/v1/chat/completions", json=body)
        killer.join()
        assert (lost.status_code, lost.json()["error"]["code"]) == (503, "engine_lost")
        within(START_S, lambda: self._http.get("/health").status_code == 200)
        assert self._http.get("/v1/sessions/same").json()["content"] == self.conversation


@pytest.mark.parametrize("kv_cache", ["auto", "int8"])
def test_sessions_and_their_keys_and_values_survive_a_restart(directory: Path, tmp_path: Path, kv_cache: str) -> None:
    """Two keys with sessions of one name; the engine is killed in a turn, the server ends and is started again. Every
    turn is what the whole conversation gets, and after an end in order it is found again instead of computed."""
    key_file = tmp_path / "keys"
    key_file.write_text("first-secret-key\nsecond-secret-key\n")
    kept = f"--swap-space 1MiB --swap-dir {tmp_path} --swap-keep --session-dir {tmp_path / 'talks'}".split()
    options = ["--api-key-file", str(key_file), "--kv-cache-dtype", kv_cache, *kept]
    clients: list[Talking] = []
    with process(directory, "--kv-cache-dtype", kv_cache, "--no-enable-prefix-caching") as (_, plain):
        for start in range(3):
            with process(directory, *options) as (server, url):
                if not clients:
                    clients = [Talking(url, plain, key) for key in key_file.read_text().split()]
                found = [client.say("the cat and the hat" * (number + 1), url) for number, client in enumerate(clients)]
                assert min(found) >= (16 if start else 0), found
                assert start or found == [0, 0], "what one key computed is unknown to the other"
                if start == 1:
                    clients[0].lose(server)
                    assert clients[0].say("and again") == 0, "an engine that was killed leaves nothing"
                    assert clients[1].say("and again") == 0
                server.send_signal(signal.SIGTERM)
                assert server.wait(20) == 0
    assert (tmp_path / "linnet-kv-blocks").stat().st_mode & 0o777 == 0o600


def test_blocks_are_kept_only_where_tenants_can_be_told_apart_again(directory: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "linnet.cli.main", "serve", str(directory), "--swap-keep"]
    options = ["--swap-space", "1MiB", "--swap-dir", str(tmp_path)]
    done = subprocess.run([*command, *options], capture_output=True, text=True, timeout=60)
    assert done.returncode == 2
    assert "--swap-keep is on without --session-dir; accepted is a folder as well" in done.stderr
