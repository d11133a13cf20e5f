# SPDX-License-Identifier: Apache-2.0
"""Damaged GGUF models all the way up: container, config, tensors, tokenizer, template: one sentence or a model."""

import struct
import time
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("gguf", reason="the files are written by the gguf package")

from tiny_gguf import write_tiny_gguf
from tiny_llama import write_tiny_llama

from linnet.api import read_sampling_defaults
from linnet.errors import LinnetError
from linnet.models.load import load_model
from linnet.text import Tokenizer

MESSAGES = [{"role": "user", "content": "hello"}]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    directory = write_tiny_llama(tmp_path_factory.mktemp("tiny") / "model")
    return write_tiny_gguf(directory, directory.parent / "tiny.gguf", "Q8_0").read_bytes()


def open_all(path: Path) -> None:
    """Everything that a start reads, weights included."""
    source = load_model(path)
    for name in source.checkpoint.names():
        source.checkpoint.tensor(name)
        if name.endswith("_proj.weight"):
            source.checkpoint.linear(name.removesuffix(".weight"))
    source.checkpoint.close()
    tokenizer = Tokenizer.open(path)
    tokenizer.encode("the rain é")
    if tokenizer.templates.names:
        tokenizer.apply_chat_template(MESSAGES)
    read_sampling_defaults(path)


def mutate(whole: bytes, index: int, rng: np.random.Generator) -> bytes:
    damaged = bytearray(whole)
    header = whole.index(b"output_norm.weight") + 2000
    position = int(rng.integers(24 if index % 3 else 0, header))
    match index % 5:
        case 0:
            damaged[position] ^= 1 << int(rng.integers(8))
        case 1:
            damaged[position] = int(rng.integers(256))
        case 2:
            edge = (2**64 - 1, 2**63, 2**32, 2**31 - 1, 0, 1)[int(rng.integers(6))]
            damaged[position : position + 8] = struct.pack("<Q", edge)
        case 3:
            damaged[position : position + 4] = struct.pack("<I", int(rng.integers(1 << 31)))
        case 4:
            other = int(rng.integers(header))
            damaged[position : position + 16] = whole[other : other + 16]
    return bytes(damaged)


def check(whole: bytes, path: Path, count: int, seed: int) -> None:
    path.write_bytes(whole)
    open_all(path)
    rng = np.random.default_rng(seed)
    refused = 0
    for index in range(count):
        path.write_bytes(mutate(whole, index, rng))
        begin, message = time.monotonic(), ""
        try:
            open_all(path)
        except LinnetError as error:
            message = str(error)
            refused += 1
        assert time.monotonic() - begin < 10, f"seed {seed}, mutant {index}"
        named = path.name in message or "chat template" in message
        assert not message or named, f"seed {seed}, mutant {index}: {message}"
    assert refused > count // 4


def test_mutants(whole: bytes, tmp_path: Path) -> None:
    check(whole, tmp_path / "mutant.gguf", 200, seed=21)


@pytest.mark.slow
def test_a_thousand_mutants(whole: bytes, tmp_path: Path) -> None:
    check(whole, tmp_path / "mutant.gguf", 1000, seed=22)
