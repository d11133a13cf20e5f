# SPDX-License-Identifier: Apache-2.0
"""A model as a directory and as a GGUF file is the same model, whatever is done with it."""

import json
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("gguf", reason="the files are written by the gguf package")
pytest.importorskip("linnet.backends.cpu._native", reason="the native kernels are not built")

from serving import NAME, Running
from tiny_gguf import write_tiny_gguf
from tiny_llama import write_tiny_llama

from linnet.api import LLM, SamplingParams, read_sampling_defaults
from linnet.cli.main import run
from linnet.formats import Checkpoint, resolve_model

PROMPTS = ["the rain in", "one\n\ntwo", "é 🙂"]
MESSAGES = [{"role": "user", "content": "hello"}]
GREEDY = SamplingParams(temperature=0.0, max_tokens=12)


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_llama(tmp_path_factory.mktemp("tiny") / "model")


@pytest.fixture(scope="module")
def file(directory: Path) -> Path:
    return write_tiny_gguf(directory, directory.parent / "tiny.gguf")


def answers(path: Path) -> list[tuple[tuple[int, ...], str]]:
    with LLM(path, tile_cache=False) as llm:
        outputs = [*llm.generate(PROMPTS, GREEDY), *llm.chat(MESSAGES, GREEDY)]
    return [(tuple(output.outputs[0].token_ids), output.outputs[0].text) for output in outputs]


def test_it_answers_as_the_directory_does(directory: Path, file: Path, tmp_path: Path) -> None:
    expected = answers(directory)
    assert answers(file) == expected
    parts = write_tiny_gguf(directory, tmp_path / "parts.gguf", split_max_tensors=8)
    assert not parts.exists()
    assert answers(resolve_model(tmp_path)) == expected, "a directory with one split set"


@pytest.mark.parametrize("kind", ["F16", "BF16"])
def test_half_precision(kind: str, directory: Path, tmp_path: Path) -> None:
    found = write_tiny_gguf(directory, tmp_path / "half.gguf", kind)
    with Checkpoint.open(found) as half, Checkpoint.open(directory) as whole:
        assert half.names() == whole.names()
        for name in half.names():
            np.testing.assert_allclose(
                half.tensor(name).astype(np.float32), whole.tensor(name).astype(np.float32), rtol=2**-8, atol=1e-6
            )
    assert len(answers(found)) == len(answers(directory))


def test_its_recommendations_and_hash(directory: Path, file: Path) -> None:
    assert str(read_sampling_defaults(file)) == "temperature 0.25"
    with Checkpoint.open(file) as checkpoint:
        digest = checkpoint.digest()
        assert len(digest) == 64
        assert checkpoint.state() == checkpoint.state()
    with Checkpoint.open(file) as checkpoint:
        assert checkpoint.digest() == digest


def test_inspect_and_generate(file: Path, directory: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["inspect", str(file), "--json"]) == 0
    seen = json.loads(capsys.readouterr().out)
    assert run(["inspect", str(directory), "--json"]) == 0
    expected = json.loads(capsys.readouterr().out)
    for of_tokenizer in ("process_bytes", "resident_bytes", "served_bytes"):  # not of the same size in the two
        del expected["predicted_memory"][of_tokenizer], seen["predicted_memory"][of_tokenizer]
    assert {**seen, "path": ""} == {**expected, "path": ""}
    texts = []
    for path in (file, directory):
        assert run(["generate", str(path), PROMPTS[0], "--max-tokens", "8", "--temperature", "0"]) == 0
        texts.append(capsys.readouterr().out)
    assert texts[0] == texts[1]


def test_eval(file: Path, directory: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = tmp_path / "text.txt"
    text.write_text("the rain in spain stays mainly in the plain, é and so on. " * 20)
    options = ["--text", str(text), "--max-tokens", "300", "--questions", "none", "--report", str(tmp_path / "out")]
    assert run(["eval", str(file), "--against", str(directory), *options]) == 0, capsys.readouterr().err
    report = json.loads((tmp_path / "out.json").read_text())
    assert report["divergence"]["maximum"] == 0, report["divergence"]
    assert sorted(path.name for path in file.parent.iterdir()) == ["model", "tiny.gguf"], "nothing is stored beside it"


def test_serve(file: Path) -> None:
    with LLM(file, tile_cache=False) as llm:
        expected = llm.chat(MESSAGES, SamplingParams(temperature=0.0, max_tokens=8))[0].outputs[0].text
    with Running(LLM(file, tile_cache=False)) as server:
        body = {"model": NAME, "messages": MESSAGES, "max_tokens": 8, "temperature": 0}
        reply = server.http.post("/v1/chat/completions", json=body).json()
    assert reply["choices"][0]["message"]["content"] == expected


def test_compress(file: Path, directory: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for path, target in ((file, tmp_path / "from-file"), (directory, tmp_path / "from-directory")):
        assert run(["compress", str(path), "-o", str(target), "--scheme", "W8A16-g32", "--algorithm", "rtn"]) == 0
    capsys.readouterr()
    with Checkpoint.open(tmp_path / "from-file") as ours, Checkpoint.open(tmp_path / "from-directory") as theirs:
        assert ours.digest() == theirs.digest()
    assert answers(tmp_path / "from-file") == answers(tmp_path / "from-directory")
