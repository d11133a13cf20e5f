# SPDX-License-Identifier: Apache-2.0
"""What ``linnet doctor`` says of llama.cpp, asked of llama.cpp itself: it opens each file that it is said to open, and
computes what Linnet computes of it; it refuses the others.

Needs llama-cpp-python, installed here or in an environment of its own: LINNET_LLAMA_CPP_PYTHON=path/to/bin/python
(bench/peers/install.py makes one).
"""

import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch", reason="needs the dev extra")
pytest.importorskip("transformers", reason="needs the dev extra")
gguf = pytest.importorskip("gguf", reason="the files are written by the gguf package")

import stepping  # noqa: E402
import test_gguf  # noqa: E402
import test_gguf_written  # noqa: E402
import transformers  # noqa: E402
from gguf_models import write_gguf  # noqa: E402
from safetensors.torch import load_file  # noqa: E402
from test_families import LIMITS, backend_named  # noqa: E402
from tiny_gguf import write_tiny_gguf  # noqa: E402
from tiny_llama import write_tiny_llama  # noqa: E402
from tiny_models import TinyModel, gated, write  # noqa: E402

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "unit" / "schemes"))
from gguf_random_blocks import random_blocks  # noqa: E402

from linnet.cli.doctoring import examine  # noqa: E402
from linnet.errors import LinnetError  # noqa: E402
from linnet.formats import Checkpoint  # noqa: E402
from linnet.formats.convert import to_gguf  # noqa: E402
from linnet.formats.programs import Verdict  # noqa: E402
from linnet.formats.programs.of_llama_cpp import ARCHITECTURES, CUTS, ELSE  # noqa: E402
from linnet.gguf import NAMED_TYPES  # noqa: E402
from linnet.models import load_model  # noqa: E402
from linnet.schemes.gguf_blocks import BLOCK_TYPES  # noqa: E402

PYTHON = os.environ.get("LINNET_LLAMA_CPP_PYTHON", "")
if not PYTHON and importlib.util.find_spec("llama_cpp"):
    PYTHON = sys.executable
pytestmark = [
    pytest.mark.peers,
    pytest.mark.skipif(not Path(PYTHON).is_file(), reason="neither here nor at LINNET_LLAMA_CPP_PYTHON is llama_cpp"),
]
IDS = [5, 17, 3, 40]
Make = Callable[[Path], Path]
"""A folder -> a file in it."""
LLAMA = next(tiny for tiny in test_gguf.MODELS if tiny.name == "llama-1")
WIDE = TinyModel(
    "wide",
    lambda: transformers.LlamaConfig(
        **gated(hidden_size=256, intermediate_size=512, num_hidden_layers=1, num_attention_heads=4)
    ),
)
"""Of whole blocks."""


def family(tiny: TinyModel) -> Make:
    """As llama.cpp's converters write it."""

    def make(folder: Path) -> Path:
        model = write(tiny, folder / "directory")
        saved = load_file(folder / "directory" / "model.safetensors")
        tensors = saved if any(".experts." in name for name in saved) else None
        return write_gguf(model, folder / "m.gguf", tensors=tensors, tokenizer=True)

    return make


def once(folder: Path, tiny: TinyModel) -> Path:
    """A file that several cases begin with."""
    shared = folder.parent / tiny.name
    if not shared.is_dir():
        shared.mkdir()
        family(tiny)(shared)
    return shared / "m.gguf"


def written(name: str) -> Make:
    """What doctor says to type instead."""

    def make(folder: Path) -> Path:
        write(test_gguf_written.by_name[name], folder / "directory")
        with Checkpoint.open(folder / "directory") as checkpoint:
            to_gguf(checkpoint, folder / "m.gguf", "Q8_0", test_gguf_written.TOKENS)
        return folder / "m.gguf"

    return make


def again(good: Path, path: Path, keys: dict[str, Any], kind: str | None = None, without: str = "") -> Path:
    """A good file with other keys (None: without), matrices of another type, without a tensor."""
    reader = gguf.GGUFReader(good)
    writer = gguf.GGUFWriter(path, keys.get("general.architecture", "llama"))
    for name, field in reader.fields.items():
        if name.startswith("GGUF.") or name in ("general.architecture", *keys):
            continue
        inner = field.types[-1] if len(field.types) > 1 else None
        writer.add_key_value(name, field.contents(), field.types[0], sub_type=inner)
    for name, value in keys.items():
        if value is not None and name != "general.architecture":
            writer.add_key_value(name, value, gguf.GGUFValueType.get_type(value))
    for seed, tensor in enumerate(reader.tensors):
        if tensor.name == without:
            continue
        if kind is None or tensor.data.ndim < 2:
            writer.add_tensor(tensor.name, tensor.data)
        else:
            number = gguf.GGMLQuantizationType[kind]
            writer.add_tensor(tensor.name, encoded(kind, tensor.data, seed), raw_dtype=number)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def encoded(name: str, data: np.ndarray, seed: int) -> np.ndarray:
    """A matrix as plain numbers, or random blocks of its size with scales small enough for any sum."""
    kind = NAMED_TYPES[name]
    if name.startswith("TQ"):  # random bytes hold codes that mean nothing
        return gguf.quants.quantize(data, gguf.GGMLQuantizationType[name])
    if name in BLOCK_TYPES:
        blocks = random_blocks(BLOCK_TYPES[name], len(data), data.shape[1] // kind.block_elements, seed, extreme=False)
        return blocks.reshape(len(data), -1)
    if name in ("F32", "F16", "BF16"):
        return gguf.quants.quantize(data, gguf.GGMLQuantizationType[name])
    return np.zeros((len(data), kind.row_bytes(data.shape[1])), np.uint8)


def of_type(name: str) -> Make:
    """A llama whose matrices are of a type."""

    def make(folder: Path) -> Path:
        return again(once(folder, WIDE), folder / "typed.gguf", {}, name)

    return make


def changed(without: str = "", **keys: Any) -> Make:
    """``keys``: with double underscores for points."""

    def make(folder: Path) -> Path:
        named = {name.replace("__", "."): value for name, value in keys.items()}
        return again(once(folder, LLAMA), folder / "changed.gguf", named, without=without)

    return make


def split(part: int) -> Make:
    """The parts of a set, of which one is asked for."""

    def make(folder: Path) -> Path:
        write_tiny_gguf(write_tiny_llama(folder / "directory"), folder / "m.gguf", split_max_tensors=5)
        return sorted(folder.glob("m-*.gguf"))[part]

    return make


def patched(change: Callable[[bytes], bytes]) -> Make:
    """A good file with other bytes."""

    def make(folder: Path) -> Path:
        path = folder / "patched.gguf"
        path.write_bytes(change(once(folder, LLAMA).read_bytes()))
        return path

    return make


CASES: dict[str, Make] = {
    **{f"family {tiny.name}": family(tiny) for tiny in test_gguf.MODELS},
    **{f"written {name}": written(name) for name in (*test_gguf_written.WRITTEN, "gemma-2", "gemma-3")},
    **{f"type {name}": of_type(name) for name in NAMED_TYPES if name != "Q8_1"},  # its size is another in gguf-py,
    "first of a set": split(0),
    "second of a set": split(1),
    "unknown architecture": changed(general__architecture="nobodys"),
    "no tokenizer": changed(tokenizer__ggml__model=None),
    "unknown tokenizer": changed(tokenizer__ggml__model="nobodys"),
    "tokenizer without merges": changed(tokenizer__ggml__merges=None),
    "unknown way of cutting": changed(tokenizer__ggml__pre="nobodys"),
    "no way of cutting": changed(tokenizer__ggml__pre=None),
    "no tokens": changed(tokenizer__ggml__tokens=None),
    "no layers' number": changed(llama__block_count=None),
    "no context": changed(llama__context_length=None),
    "no epsilon": changed(llama__attention__layer_norm_rms_epsilon=None),
    "no heads": changed(llama__attention__head_count=None),
    "no kv heads": changed(llama__attention__head_count_kv=None),
    "a tensor gone": changed(without="blk.1.ffn_up.weight"),
    "no head": changed(without="output.weight"),
    "no rope base": changed(llama__rope__freq_base=None),
    "version 1": patched(lambda data: data[:4] + b"\1\0\0\0" + data[8:]),
    "version 4": patched(lambda data: data[:4] + b"\4\0\0\0" + data[8:]),
    "big-endian": patched(lambda data: data[:4] + b"\0\0\0\3" + data[8:]),
    "cut": patched(lambda data: data[:-4096]),
    "longer": patched(lambda data: data + bytes(64)),
}


ALIKE = {"family": 1e-3, "type": 0.1, "written": 0.1, "first": 1e-3, "no": 1e-3, "longer": 1e-3}
"""By how much, relative, the logits of one computation may be off: weights in F32 meet F32 (1e-6; 4e-4 where a GELU is
looked up in a table of F16), others meet inputs that are rounded to 8 bits or to BF16."""
UNCHECKED = ("no layers' number", "no context", "no epsilon", "no heads", "a tensor gone")
"""Files that are not whole, of which it is not said what llama.cpp misses."""


def header(folder: Path, architecture: str, cut: str = "default") -> Path:
    """A file that says what it is, and has no tensors."""
    path = folder / f"{architecture} {cut}.gguf"
    writer = gguf.GGUFWriter(path, architecture)
    for key in ("context_length", "embedding_length", "block_count", "attention.head_count", "feed_forward_length"):
        writer.add_uint32(f"{architecture}.{key}", 64)
    writer.add_float32(f"{architecture}.attention.layer_norm_rms_epsilon", 1e-5)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(cut)
    writer.add_token_list(["t0", "t1"])
    writer.add_token_merges(["t 0"])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.fixture(scope="module")
def asked(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[dict[str, Path], dict[str, Any]]:
    """The files of the cases that run, and what llama.cpp answered."""
    folder = tmp_path_factory.mktemp("llama_cpp")
    chosen = {item.callspec.params.get("name") for item in request.session.items if hasattr(item, "callspec")}
    paths = {}
    for number, (name, make) in enumerate(CASES.items()):
        if name in chosen:
            inside = folder / str(number)
            inside.mkdir()
            paths[name] = make(inside)
    return paths, ask(folder, paths)


def ask(folder: Path, paths: dict[str, Path]) -> dict[str, Any]:
    """An answer for each path (ask_llama_cpp.py)."""
    questions = {name: {"path": str(path), "ids": IDS} for name, path in paths.items()}
    (folder / "questions.json").write_text(json.dumps(questions))
    script = Path(__file__).with_name("ask_llama_cpp.py")
    command = [PYTHON, str(script), str(folder / "questions.json"), str(folder / "answers.json")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, cwd=folder)
    assert done.returncode == 0, done.stderr[-4000:]
    answers: dict[str, Any] = json.loads((folder / "answers.json").read_text())
    return answers


def said(path: Path) -> list[Verdict] | LinnetError:
    """The doctor's verdicts, or why there are none."""
    try:
        return examine(path)
    except LinnetError as error:
        return error


def off(path: Path, logits: list[list[float]]) -> float:
    """The norm of what llama.cpp's logits are off by, relative to Linnet's own in the longest context: llama.cpp
    rounds a context up to 256 tokens, by which its ropes of two tables choose."""
    with Checkpoint.open(path) as checkpoint:
        longest = checkpoint.config.get("max_position_embeddings")
    executable = backend_named("reference").prepare(load_model(path, longest), "exact", LIMITS)
    [right] = stepping.run(executable, [IDS], None)
    return float(np.linalg.norm(np.array(logits) - right) / np.linalg.norm(right))


@pytest.mark.parametrize("name", CASES)
def test_llama_cpp_does_as_it_is_said_to(name: str, asked: tuple[dict[str, Path], dict[str, Any]]) -> None:
    path, answer = asked[0][name], asked[1][name]
    verdicts = said(path)
    loaded = answer["stage"] == "loaded"
    print(name, verdicts, answer["stage"], answer.get("why"))
    if not isinstance(verdicts, list):
        assert not loaded
        return
    linnet, llama_cpp = verdicts[0], verdicts[-1]
    if llama_cpp.loads is None:
        assert name in UNCHECKED
        assert not loaded
        return
    differs = llama_cpp.why.endswith(ELSE)
    assert llama_cpp.loads == (loaded and not differs)
    if loaded and linnet.loads:
        error = off(path, answer["logits"])
        print(f"off by {error:.2g}")
        assert (error < ALIKE[name.partition(" ")[0]]) != differs


def test_its_architectures_are_known(tmp_path: Path) -> None:
    paths = {name: header(tmp_path, name) for name in (*ARCHITECTURES, "nobodys")}
    answers = ask(tmp_path, paths)
    assert {name for name, answer in answers.items() if "unknown model architecture" in answer["why"]} == {"nobodys"}


def test_its_ways_of_cutting_are_known(tmp_path: Path) -> None:
    paths = {name: header(tmp_path, "llama", name) for name in (*CUTS, "nobodys")}
    answers = ask(tmp_path, paths)
    assert {name for name, answer in answers.items() if "unknown pre-tokenizer" in answer["why"]} == {"nobodys"}
