# SPDX-License-Identifier: Apache-2.0
"""Adapters over HTTP: model names, several at once, loading and unloading with a key, an engine process that dies.

The law: an answer of an adapter is that of a model with the adapter merged into its weights.
"""

import os
import shutil
import signal
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import gguf
import httpx
import numpy as np
import openai
import pytest
from safetensors.numpy import load_file, save_file
from serving import NAME, Running, eventually
from test_server_process import engine_of, process
from tiny_adapter import linears_of, merged, write_adapter
from tiny_gguf import write_tiny_gguf
from tiny_llama import write_tiny_llama

from linnet.api import LLM
from linnet.engine import SamplingParams
from linnet.errors import CapacityError, ConfigError, UnsupportedError
from linnet.serve import ServeConfig, build_server

KEY = "a-secret-key"
HEADERS = {"Authorization": f"Bearer {KEY}"}
PROMPTS = ("the rain", "in the house", "a cat", "on the plain and then")
GREEDY = SamplingParams(temperature=0.0, max_tokens=8, ignore_eos=True)
WAY_ROUND = Path("/proc", "self", "root")
"""A link to where every path begins: what leads through it lies in the folder, but does not say so."""


class World:
    """A model, adapters of it in a folder, and what each makes of the prompts when merged."""

    def __init__(self, directory: Path) -> None:
        self.model = write_tiny_llama(directory / "tiny-llama")
        self.folder = directory / "adapters"
        shapes = linears_of(self.model)
        for seed, name in enumerate(("poet", "lawyer", "clerk", "wide")):
            write_adapter(self.folder / name, shapes, rank=20 if name == "wide" else 4, alpha=8, seed=seed, spread=1.0)
        self.expected = {NAME: self._texts(self.model)}
        for name in ("poet", "lawyer", "clerk"):
            self.expected[name] = self._texts(merged(self.model, self.folder / name, directory / f"merged-{name}"))
        assert len(set(map(str, self.expected.values()))) == 4

    @staticmethod
    def _texts(model: Path) -> list[str]:
        with LLM(model, policy="exact", kv_bytes=1 << 20) as llm:
            return [output.outputs[0].text for output in llm.generate(list(PROMPTS), GREEDY)]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return World(tmp_path_factory.mktemp("adapters"))


@pytest.fixture(scope="module")
def server(world: World) -> Iterator[Running]:
    given = tuple((name, world.folder / name) for name in ("poet", "lawyer"))
    with (
        LLM(world.model, policy="exact", kv_bytes=1 << 20, max_adapters=3, max_adapter_rank=16) as llm,
        Running(llm, adapters=given, adapters_from=world.folder, keys=(KEY,)) as running,
    ):
        yield running


def body(model: str, prompt: str, **more: Any) -> dict[str, Any]:
    asked = {"model": model, "prompt": prompt, "temperature": 0, "max_tokens": 8}
    return asked | {"extra_body": {"ignore_eos": True}} | more


def text(client: openai.OpenAI, model: str, prompt: str) -> str:
    return client.completions.create(**body(model, prompt)).choices[0].text


def post(server: Running, route: str, **fields: Any) -> httpx.Response:
    return server.http.post(f"/v1/{route}", json=fields, headers=HEADERS)


def test_python_callers_name_adapters(world: World) -> None:
    paths = {name: world.folder / name for name in ("poet", "lawyer")}
    with LLM(world.model, policy="exact", kv_bytes=1 << 20, adapters=paths) as llm:
        for name in (None, "poet", "lawyer"):
            found = [output.outputs[0].text for output in llm.generate(list(PROMPTS), GREEDY, adapter=name)]
            assert found == world.expected[name or NAME]
            pieces = llm.stream(PROMPTS[0], GREEDY, adapter=name)
            assert "".join(piece.text for piece in pieces) == world.expected[name or NAME][0]
        one, other = (llm.embed(PROMPTS[0], adapter=name)[0] for name in (None, "poet"))
        assert np.abs(one - other).max() > 1e-3
        with pytest.raises(ConfigError, match="no adapter 'clerk'; loaded: poet, lawyer"):
            llm.generate("a", adapter="clerk")
        with pytest.raises(CapacityError, match=r"2 adapters are loaded; there is room for 2 \(max_adapters\)"):
            llm.adapters.load("clerk", world.folder / "clerk")
        llm.adapters.unload("poet")
        llm.adapters.load("clerk", world.folder / "clerk")
        assert llm.generate(PROMPTS[1], GREEDY, adapter="clerk")[0].outputs[0].text == world.expected["clerk"][1]


@pytest.mark.parametrize("kind", ["F32", "Q8_0"])
def test_over_a_gguf_file_as_over_a_directory_of_the_same_numbers(world: World, tmp_path: Path, kind: str) -> None:
    """Though rows of queries and keys lie in another order there."""
    directory = tmp_path / "directory"
    shutil.copytree(world.model, directory)
    tensors = load_file(world.model / "model.safetensors")
    for name, values in tensors.items():
        if values.ndim == 2 and kind != "F32":
            quantised = gguf.quants.quantize(values.astype(np.float32), gguf.GGMLQuantizationType[kind])
            tensors[name] = gguf.quants.dequantize(quantised, gguf.GGMLQuantizationType[kind])
    save_file(tensors, directory / "model.safetensors", metadata={"format": "pt"})
    file = write_tiny_gguf(directory, tmp_path / "model.gguf", kind)
    scoring = SamplingParams(temperature=0.0, max_tokens=8, ignore_eos=True, prompt_logprobs=0)
    found: dict[tuple[Path, str | None], np.ndarray] = {}
    for path in (directory, file):
        room = {"policy": "exact", "kv_cache": "fp32", "kv_bytes": 1 << 20}
        with LLM(path, adapters={"poet": world.folder / "poet"}, **room) as llm:  # type: ignore[arg-type]
            for name in (None, "poet"):
                answers = llm.generate(list(PROMPTS), scoring, adapter=name)
                scores = [one.prompt_logprobs.logprobs for one in answers if one.prompt_logprobs is not None]
                found[path, name] = np.concatenate(scores)
    assert np.abs(np.subtract(found[file, "poet"], found[directory, "poet"])).max() <= 1e-4
    assert np.abs(np.subtract(found[file, "poet"], found[file, None])).max() > 0.1


def test_models_without_room_say_so(world: World, tmp_path: Path) -> None:
    with LLM(world.model, kv_bytes=1 << 20) as llm, pytest.raises(ConfigError, match="max_adapters"):
        llm.adapters.load("poet", world.folder / "poet")
    with pytest.raises(UnsupportedError, match="DoRA"):
        LLM(world.model, adapters={"one": write_adapter(tmp_path, {"q_proj": (4, 4)}, use_dora=True)})


def test_two_adapters_and_the_model_at_once(server: Running, world: World) -> None:
    client = server.openai(api_key=KEY)
    wanted = [(name, index) for name in (NAME, "poet", "lawyer") for index in range(len(PROMPTS))] * 2
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda pair: text(client, pair[0], PROMPTS[pair[1]]), wanted))
    assert found == [world.expected[name][index] for name, index in wanted]
    lenient = server.openai(strict=False, api_key=KEY)  # chunks have no finish_reason until the last
    stream = lenient.completions.create(**body("poet", PROMPTS[2], stream=True))
    assert "".join(chunk.choices[0].text for chunk in stream) == world.expected["poet"][2]


def test_chat_shows_the_name_that_was_asked_for(server: Running) -> None:
    client = server.openai(api_key=KEY)
    asked = {"messages": [{"role": "user", "content": "the rain"}], "temperature": 0, "max_tokens": 8, "logprobs": True}
    answers = [client.chat.completions.create(model=name, **asked) for name in ("poet", "lawyer", "poet")]
    assert [answer.model for answer in answers] == ["poet", "lawyer", "poet"]
    assert answers[0].choices == answers[2].choices
    assert answers[0].choices != answers[1].choices


def test_models_are_listed_with_their_parent(server: Running) -> None:
    cards = {card.id: card for card in server.openai(api_key=KEY).models.list()}
    assert {"poet", "lawyer", NAME} <= cards.keys()
    assert cards["poet"].parent == NAME  # type: ignore[attr-defined]
    assert cards[NAME].parent is None  # type: ignore[attr-defined]
    assert server.openai(api_key=KEY).models.retrieve("lawyer").id == "lawyer"


def test_unknown_models_stay_unknown(server: Running) -> None:
    for route in ("completions", "chat/completions", "embeddings"):
        answer = post(server, route, model="nobody", prompt="a", input="a", messages=[{"role": "user", "content": "a"}])
        assert answer.status_code in (400, 404)
    answer = post(server, "completions", model="nobody", prompt="a")
    assert (answer.status_code, answer.json()["error"]["code"]) == (404, "model_not_found")
    assert "poet" in answer.json()["error"]["message"]


def test_loading_and_unloading_while_requests_run(server: Running, world: World) -> None:
    client = server.openai(api_key=KEY)
    loaded = post(server, "load_lora_adapter", lora_name="clerk", lora_path="clerk")
    assert (loaded.status_code, loaded.json()["id"], loaded.json()["parent"]) == (200, "clerk", NAME)
    assert text(client, "clerk", PROMPTS[0]) == world.expected["clerk"][0]
    assert post(server, "load_lora_adapter", lora_name="clerk", lora_path="clerk").status_code == 400
    full = post(server, "load_lora_adapter", lora_name="fourth", lora_path=str(world.folder / "clerk"))
    assert (full.status_code, full.json()["error"]["code"]) == (429, "adapter_limit")
    assert (full.headers["retry-after"], full.headers["x-should-retry"]) == ("120", "false")  # nobody is on the way out
    long = {"prompt": PROMPTS[1], "temperature": 0, "max_tokens": 150, "ignore_eos": True, "model": "clerk"}
    whole = post(server, "completions", **long).json()["choices"][0]["text"]
    answers: list[str] = []
    asking = threading.Thread(
        target=lambda: answers.append(post(server, "completions", **long).json()["choices"][0]["text"])
    )
    asking.start()
    eventually(lambda: server.server.bridge.in_flight > 0)  # type: ignore[union-attr]
    gone = post(server, "unload_lora_adapter", lora_name="clerk", lora_int_id=3)
    assert (gone.status_code, gone.json()["deleted"]) == (200, True)
    assert post(server, "completions", model="clerk", prompt="a").status_code == 404
    soon = post(server, "load_lora_adapter", lora_name="fourth", lora_path="clerk")
    if soon.status_code == 429:  # the answer is not there yet
        assert "1 are still in use" in soon.json()["error"]["message"]
        assert (soon.headers["retry-after"], soon.headers["x-should-retry"]) == ("1", "true")
    else:
        post(server, "unload_lora_adapter", lora_name="fourth")
    asking.join()
    assert answers == [whole]
    assert post(server, "unload_lora_adapter", lora_name="clerk").status_code == 404
    eventually(lambda: post(server, "load_lora_adapter", lora_name="next", lora_path="poet").status_code == 200)
    assert text(client, "next", PROMPTS[0]) == world.expected["poet"][0]
    assert post(server, "unload_lora_adapter", lora_name="next").status_code == 200
    server.wait_settled()


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"lora_path": "nowhere"}, "no adapter in this server's folder"),
        ({"lora_path": "../tiny-llama"}, "no adapter in this server's folder"),
        ({"lora_path": "/etc"}, "no adapter in this server's folder"),
        ({"lora_path": "../adapters/poet"}, "no adapter in this server's folder"),
        ({"lora_path": "lawyer/../poet"}, "no adapter in this server's folder"),
        ({"lora_path": f"{WAY_ROUND}/FOLDER/poet"}, "no adapter in this server's folder"),
        ({"lora_path": "poet\0"}, "no adapter in this server's folder"),
        ({"lora_path": "x" * 4000}, "no adapter in this server's folder"),
        ({"lora_path": "wide"}, "rank 20"),
        ({"lora_path": "poet", "lora_name": NAME}, "a model 'tiny' already"),
        ({"lora_path": "poet", "lora_name": "poet"}, "a model 'poet' already"),
        ({"lora_path": "poet", "lora_name": "a\nb"}, "printable"),
        ({"lora_path": 3}, "lora_path"),
        ({}, "lora_path"),
    ],
)
def test_what_is_not_loaded(fields: dict[str, Any], words: str, server: Running, world: World) -> None:
    fields = {name: str(value).replace("/FOLDER", str(world.folder)) if isinstance(value, str) else value
              for name, value in fields.items()}  # fmt: skip
    answer = post(server, "load_lora_adapter", **({"lora_name": "new"} | fields))
    assert answer.status_code == 400
    message = answer.json()["error"]["message"]
    assert words in message
    assert str(world.folder) not in message.replace(str(fields.get("lora_path")), ""), "nothing but what was asked"


def test_nobody_loads_without_a_key_or_a_folder(server: Running, world: World) -> None:
    asked = {"lora_name": "new", "lora_path": "poet"}
    for route in ("load_lora_adapter", "unload_lora_adapter"):
        assert server.http.post(f"/v1/{route}", json=asked).status_code == 401
    with LLM(world.model, kv_bytes=1 << 20, max_adapters=1) as llm:
        with pytest.raises(ConfigError, match="there is no API key"):
            build_server(llm.served(), ServeConfig(names=(NAME,), adapters_from=world.folder))
        with Running(llm, keys=(KEY,)) as without_folder:
            assert post(without_folder, "load_lora_adapter", **asked).status_code == 404
            assert "lora" not in without_folder.http.get("/openapi.json", headers=HEADERS).text


def test_an_engine_process_loads_them_again_when_it_has_died(world: World) -> None:
    options = ["--policy", "exact", "--adapters-from", str(world.folder), "--served-model-name", NAME]
    options += ["--adapter", f"poet={world.folder / 'poet'}", "--lora-modules", f"lawyer={world.folder / 'lawyer'}"]
    with (
        process(world.model, *options, environment={"LINNET_API_KEY": KEY}, name=NAME) as (started, url),
        httpx.Client(base_url=url, headers=HEADERS, timeout=30) as http,
    ):

        def answered(name: str) -> bool:
            asked = {"model": name, "prompt": PROMPTS[0], "temperature": 0, "max_tokens": 8, "ignore_eos": True}
            answer = http.post("/v1/completions", json=asked)
            wanted = world.expected["poet" if name == "late" else name][0]
            return answer.status_code == 200 and answer.json()["choices"][0]["text"] == wanted

        loading = {"lora_name": "clerk", "lora_path": "clerk"}
        assert http.post("/v1/load_lora_adapter", json=loading).status_code == 200
        assert http.post("/v1/unload_lora_adapter", json={"lora_name": "lawyer"}).status_code == 200
        assert all(map(answered, (NAME, "poet", "clerk")))
        os.kill(engine_of(started), signal.SIGKILL)
        assert http.post("/v1/load_lora_adapter", json={"lora_name": "late", "lora_path": "poet"}).status_code == 200
        assert http.post("/v1/unload_lora_adapter", json={"lora_name": "clerk"}).status_code == 200
        eventually(lambda: all(map(answered, (NAME, "poet", "late"))), 30.0)
        assert http.post("/v1/completions", json={"model": "clerk", "prompt": "a"}).status_code == 404
        assert http.post("/v1/completions", json={"model": "lawyer", "prompt": "a"}).status_code == 404
