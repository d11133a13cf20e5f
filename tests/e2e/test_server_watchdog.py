# SPDX-License-Identifier: Apache-2.0
"""R25: nothing that data says is done. An audit hook watches a server and its engine while they open a hostile model
and answer every bad request of the corpus; also under ``python -O``, where asserts are gone."""

import json
import os
import pickle
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import httpx
import pytest
from test_server_bad_requests import BODIES, JSON, WRONG
from tiny_llama import write_tiny_llama

ROOT = Path(__file__).resolve().parents[2]
MESSAGES = [
    {"role": "user", "content": "{{ 7 * 7 }} {% for x in ().__class__.__base__.__subclasses__() %}{% endfor %}"}
]
GOOD: list[tuple[str, dict[str, Any]]] = [
    ("/v1/completions", {"prompt": "the rain", "max_tokens": 4, "logprobs": 2}),
    ("/v1/completions", {"prompt": "the rain", "max_tokens": 4, "stream": True}),
    ("/v1/chat/completions", {"messages": MESSAGES, "max_tokens": 4}),
    ("/v1/chat/completions", {"messages": MESSAGES, "max_tokens": 8, "response_format": {"type": "json_object"}}),
    (
        "/v1/chat/completions",
        {"messages": MESSAGES, "chat_template_kwargs": {"tokenize": True, "x": "__import__('os')"}},
    ),
    ("/v1/responses", {"input": "__import__('os').system('id')", "max_output_tokens": 4}),
    ("/v1/embeddings", {"input": ["http://192.0.2.1/x.png", "file:///etc/passwd"]}),
    ("/v1/score", {"text_1": "one", "text_2": ["two", "![x](http://192.0.2.1/x.png)"]}),
    ("/tokenize", {"prompt": "<|im_start|>"}),
]


class Touch:
    """Unpickled, it leaves a trace."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.path),)


def hostile_model(directory: Path) -> Path:
    """A checkpoint that would run code in whoever believes it."""
    model = write_tiny_llama(directory / "tiny")
    trap = f"import os\nos.mkdir({str(directory / 'trap')!r})\n"
    for name in ("modeling_x.py", "configuration_x.py", "tokenization_x.py", "__init__.py", "json.py", "numpy.py"):
        (model / name).write_text(trap)
    for name in ("pytorch_model.bin", "training_args.bin", "optimizer.pt"):
        (model / name).write_bytes(pickle.dumps(Touch(directory / "trap")))
    classes = {
        "AutoConfig": "configuration_x.X",
        "AutoModelForCausalLM": "modeling_x.X",
        "AutoTokenizer": ["x.X", None],
    }
    for name in ("config.json", "tokenizer_config.json"):
        value = json.loads((model / name).read_text())
        (model / name).write_text(json.dumps({**value, "auto_map": classes}))
    return model


def watched(directory: Path, optimised: bool) -> dict[str, str]:
    """The environment of a watched process. The folder's cache is its own."""
    (directory / "cache").mkdir(exist_ok=True)
    return os.environ | {
        "PYTHONPATH": str(ROOT / "tests/e2e/watchdog"),
        "PYTHONOPTIMIZE": "1" if optimised else "",
        "PYTHONDONTWRITEBYTECODE": "1",
        "PYTHON_WATCHDOG_REPORT": str(directory / "report"),
        "PYTHON_WATCHDOG_MODEL": str(directory / "tiny"),
        "PYTHON_WATCHDOG_CACHE": str(directory / "cache"),
        "PYTHON_WATCHDOG_SOURCES": str(ROOT / "src"),
        "XDG_CACHE_HOME": str(directory / "cache"),
        "HF_HOME": str(directory / "cache"),
    }


def reported(directory: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (directory / "report").read_text().splitlines()]


def ask_everything(url: str) -> dict[int, int]:
    """Good and bad requests; how many answers had which status."""
    seen: dict[int, int] = {}
    with httpx.Client(base_url=url, timeout=30) as http:
        asked: list[tuple[str, dict[str, Any]]] = [(route, {"json": {"model": "tiny", **body}}) for route, body in GOOD]
        for route, change, _ in WRONG:
            chat = "chat" in route
            base: dict[str, Any] = {"messages": [{"role": "user", "content": "x"}]} if chat else {"prompt": "x"}
            asked.append((route, {"json": {"model": "tiny", **base, **change}}))
        asked += [("/v1/chat/completions", {"content": body, "headers": JSON}) for body in BODIES.values()]
        for route, given in asked:
            status = http.post(route, **given).status_code
            seen[status] = seen.get(status, 0) + 1
        for path in ("/metrics", "/state", "/", "/openapi.json", "/v1/models/..%2f..%2fetc%2fpasswd", "/page/../../x"):
            assert http.get(path).status_code in (200, 404)
    return seen


@pytest.mark.parametrize("optimised", [False, True], ids=["", "-O"])
def test_nothing_is_executed_connected_to_or_opened_elsewhere(tmp_path: Path, optimised: bool) -> None:
    model = hostile_model(tmp_path)
    options = ["--port", "0", "--kv-cache-memory", "1MiB"]
    command = [
        sys.executable,
        "-P",
        "-m",
        "linnet.cli.main",
        "serve",
        str(model),
        *options,
    ]  # -P: as the program linnet
    environment = watched(tmp_path, optimised)
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment, cwd=model) as server:
        try:
            assert server.stderr is not None
            lines = iter(server.stderr.readline, "")
            url = next(found[1] for line in lines if (found := re.search(r"tiny on (\S+)", line)))
            seen = ask_everything(url)
            server.send_signal(signal.SIGTERM)
            assert server.wait(20) == 0
        finally:
            server.kill()
    assert reported(tmp_path) == []
    assert seen[200] >= len(GOOD)
    assert seen[400] > 80
    assert max(seen) < 500
    assert not (tmp_path / "trap").exists()
    assert {path.name for path in tmp_path.iterdir()} == {"tiny", "cache", "report"}


PLANTED = """
import os, pickle, shutil, socket, subprocess
from contextlib import suppress
eval("1 + 1")
with suppress(OSError):
    socket.create_connection(("127.0.0.1", 9), timeout=1)
subprocess.run(["true"])
pickle.loads(pickle.dumps(os.path.join))
open("/etc/passwd").close()
with suppress(OSError):
    open(os.environ["PYTHON_WATCHDOG_MODEL"] + "/modeling_x.py").close()
open(os.environ["PYTHON_WATCHDOG_REPORT"] + ".other", "w").close()
os.remove(os.environ["PYTHON_WATCHDOG_REPORT"] + ".other")
"""


def test_the_watchdog_sees_what_is_planted(tmp_path: Path) -> None:
    hostile_model(tmp_path)
    (tmp_path / "cache" / "planted").mkdir(parents=True)
    script = tmp_path / "cache" / "planted" / "planted.py"
    script.write_text(f"def main():\n{''.join('    ' + line + chr(10) for line in PLANTED.strip().splitlines())}")
    shutil.copy(script, script.with_name("run.py"))
    run = f"import sys; sys.path.insert(0, {str(script.parent)!r}); import planted; planted.main()"
    subprocess.run([sys.executable, "-c", run], env=watched(tmp_path, False), check=True)
    seen = {one["event"] for one in reported(tmp_path)}
    assert seen >= {"exec", "compile", "socket.connect", "subprocess.Popen", "pickle.find_class", "open", "os.remove"}
    opened = " ".join(one["what"] for one in reported(tmp_path) if one["event"] == "open")
    assert all(name in opened for name in ("/etc/passwd", "modeling_x.py", "report.other"))
