# SPDX-License-Identifier: Apache-2.0
"""GGUF files that ``linnet doctor`` has a word for: of every family and type, as converters and Linnet write them, of a
set, and with every kind of damage that a file can have and still be one."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import stepping
import test_gguf
import test_gguf_written
import transformers
from gguf_models import write_gguf
from safetensors.torch import load_file
from test_families import LIMITS, backend_named
from tiny_gguf import write_tiny_gguf
from tiny_llama import write_tiny_llama
from tiny_models import TinyModel, gated, write

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "unit" / "schemes"))
from gguf_random_blocks import random_blocks

from linnet.cli.doctoring import examine
from linnet.errors import LinnetError
from linnet.formats import Checkpoint
from linnet.formats.convert import to_gguf
from linnet.formats.programs import Verdict
from linnet.gguf import NAMED_TYPES
from linnet.models import load_model
from linnet.schemes.gguf_blocks import BLOCK_TYPES

IDS = [5, 17, 3, 40]
Make = Callable[[Path], Path]
"""A folder -> a file in it."""
LLAMA = next(tiny for tiny in test_gguf.MODELS if tiny.name == "llama-1")
NARROW = next(tiny for tiny in test_gguf.MODELS if tiny.name == "deepseek-v3")
WIDE = TinyModel(
    "wide",
    lambda: transformers.LlamaConfig(
        **gated(hidden_size=256, intermediate_size=512, num_hidden_layers=1, num_attention_heads=4)
    ),
)
"""Of whole blocks."""


def family(tiny: TinyModel, narrow: bool = False) -> Make:
    """As llama.cpp's converters write it (``narrow``: see write_gguf)."""

    def make(folder: Path) -> Path:
        model = write(tiny, folder / "directory")
        saved = load_file(folder / "directory" / "model.safetensors")
        tensors = saved if any(".experts." in name for name in saved) else None
        return write_gguf(model, folder / "m.gguf", tensors=tensors, tokenizer=True, narrow=narrow)

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


def again(
    good: Path,
    path: Path,
    keys: dict[str, Any],
    kind: str | None = None,
    without: str = "",
    flat: str = "none",
    parts_of: int = 0,
) -> Path:
    """A good file with other keys (None: without), matrices of another type, without a tensor, with ``flat`` (how
    names end) as vectors; ``parts_of``: as a set of files of so many tensors, whose first is given back."""
    reader = gguf.GGUFReader(good)
    architecture = reader.fields["general.architecture"].contents()
    writer = gguf.GGUFWriter(path, keys.get("general.architecture", architecture), split_max_tensors=parts_of)
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
            writer.add_tensor(tensor.name, tensor.data.reshape(-1) if tensor.name.endswith(flat) else tensor.data)
        else:
            number = gguf.GGMLQuantizationType[kind]
            writer.add_tensor(tensor.name, encoded(kind, tensor.data, seed), raw_dtype=number)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return min(path.parent.glob(f"{path.stem}-*.gguf")) if parts_of else path


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


def changed(tiny: TinyModel = LLAMA, without: str = "", flat: str = "none", **keys: Any) -> Make:
    """``keys``: with double underscores for points."""

    def make(folder: Path) -> Path:
        named = {name.replace("__", "."): value for name, value in keys.items()}
        return again(once(folder, tiny), folder / "changed.gguf", named, without=without, flat=flat)

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
    "family deepseek-v3, narrow": family(NARROW, narrow=True),
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
