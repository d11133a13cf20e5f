# SPDX-License-Identifier: Apache-2.0
"""The tables of docs/choosing-a-scheme.md: bytes of published shapes at every scheme, by Linnet's own ledger.

    python tools/docs/memory_table.py            # print the tables
    python tools/docs/memory_table.py --write    # replace them in docs/choosing-a-scheme.md

Nothing is downloaded. Each model is laid out as a directory whose safetensors file has a true header and no data (a
sparse file), so the numbers take the path of `linnet inspect`: header, config.json, Program, ledger. Shapes: the
models' published config.json files; their published parameter counts are checked.
"""

import argparse
import json
import os
import re
import struct
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from linnet.backends.interface import KVCache
from linnet.backends.select import choose_backend
from linnet.cli.numbers import human_bytes
from linnet.formats import Checkpoint
from linnet.formats.forms.canonical_written import quantization_record
from linnet.models.families import arch_spec
from linnet.models.inventory import required_tensors
from linnet.models.load import ModelSource, load_model
from linnet.plan import Ledger, predict, step_needs
from linnet.program.choose_numerics import choose_numerics
from linnet.schemes.layouts import StoredTensor, stored_tensors
from linnet.schemes.presets import parse_scheme
from linnet.schemes.scheme import LinearScheme

PAGE = Path(__file__).resolve().parents[2] / "docs" / "choosing-a-scheme.md"
CONTEXT_TOKENS = 4096
STEP_TOKENS = 512
"""What `linnet serve` and `linnet generate` compute in one step (--max-num-batched-tokens)."""
DENSE = "bf16"
SCHEMES = (
    DENSE, "W8A16-g32", "W8A16", "FP8", "W4A16-g32", "W4A16", "W4A16-head8", "NF4", "W3A16", "W2A16",
)  # fmt: skip
KV_CACHES: tuple[KVCache, ...] = ("bf16", "int8", "int4")

_NAMES = {"fp32": "F32", "bf16": "BF16", "fp16": "F16", "int8": "I8", "int32": "I32", "int64": "I64",
          "fp8_e4m3": "F8_E4M3"}  # fmt: skip


@dataclass(frozen=True)
class Shape:
    """A published model: its name, how many parameters its publisher counts, and the config fields that decide."""

    name: str
    parameters: int
    config: dict[str, Any]


def _llama(**fields: Any) -> dict[str, Any]:
    return {"architectures": ["LlamaForCausalLM"], "model_type": "llama", "vocab_size": 128256,
            "tie_word_embeddings": True, "num_key_value_heads": 8, **fields}  # fmt: skip


def _qwen(**fields: Any) -> dict[str, Any]:
    return {"architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2", "vocab_size": 152064,
            "tie_word_embeddings": False, **fields}  # fmt: skip


SHAPES = (
    Shape("Llama-3.2-1B", 1_235_814_400, _llama(
        hidden_size=2048, intermediate_size=8192, num_hidden_layers=16, num_attention_heads=32, head_dim=64)),
    Shape("Llama-3.2-3B", 3_212_749_824, _llama(
        hidden_size=3072, intermediate_size=8192, num_hidden_layers=28, num_attention_heads=24, head_dim=128)),
    Shape("Qwen2.5-7B", 7_615_616_512, _qwen(
        hidden_size=3584, intermediate_size=18944, num_hidden_layers=28, num_attention_heads=28,
        num_key_value_heads=4)),
    Shape("Qwen2.5-14B", 14_770_033_664, _qwen(
        hidden_size=5120, intermediate_size=13824, num_hidden_layers=48, num_attention_heads=40,
        num_key_value_heads=8)),
)  # fmt: skip
SHARED = {"hidden_act": "silu", "rms_norm_eps": 1e-5, "max_position_embeddings": 32768, "torch_dtype": "bfloat16"}


def lay_out(shape: Shape, scheme: str, directory: Path) -> Path:
    """A model directory of this shape and scheme: a true header, and data that is a hole in the file."""
    config = shape.config | SHARED
    spec = arch_spec(config)
    tensors: dict[str, StoredTensor] = {}
    values: dict[str, bytes] = {}
    packed: dict[str, LinearScheme] = {}
    preset = None if scheme == DENSE else parse_scheme(scheme)
    for name, size in required_tensors(spec).items():
        module = name.removesuffix(".weight")
        table = module in (spec.embedding, spec.head)
        linear = None if preset is None or len(size) != 2 else preset.head if table else preset.linear
        if linear is None:
            tensors[name] = StoredTensor("bf16", size)
            continue
        packed[module] = linear
        for suffix, tensor in stored_tensors(linear, (size[0], size[1])).items():
            tensors[f"{module}.{suffix}"] = tensor
            if suffix == "weight_shape":
                values[f"{module}.{suffix}"] = struct.pack("<2q", *size)
    if packed:
        dense = (name.removesuffix(".weight") for name in tensors if name.endswith(".weight"))
        config["quantization_config"] = quantization_record(packed, dense)
    directory.mkdir(parents=True)
    (directory / "config.json").write_text(json.dumps(config), encoding="utf-8")
    _write_hollow(directory / "model.safetensors", tensors, values)
    return directory


def _write_hollow(path: Path, tensors: dict[str, StoredTensor], values: dict[str, bytes]) -> None:
    header: dict[str, Any] = {}
    offset = 0
    for name, tensor in sorted(tensors.items(), key=lambda item: -item[1].nbytes):
        end = offset + tensor.nbytes
        header[name] = {"dtype": _NAMES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [offset, end]}
        offset = end
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 64 + 56)  # the data begins at a multiple of 64 bytes
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        start = file.tell()
        file.truncate(start + offset)
        for name, value in values.items():
            file.seek(start + header[name]["data_offsets"][0])
            file.write(value)


def ledger_of(source: ModelSource, kv_cache: KVCache = "auto") -> Ledger:
    """One sequence of CONTEXT_TOKENS, arithmetic `fast`, native kernels."""
    program = choose_numerics(source.program, "fast", kv_cache)
    needs = step_needs(
        program,
        output_width=source.spec.output_width,
        max_tokens=STEP_TOKENS,
        max_sequences=1,
        block_size=16,
        positions=CONTEXT_TOKENS,
    )
    return predict(source, needs.limits, "fast", choose_backend("cpu"), kv_cache, program, keep=needs.kept)


def measure(shape: Shape, scheme: str, kv_caches: Iterable[KVCache] = ("auto",)) -> list[Ledger]:
    """Ledgers of one shape at one scheme, one per type of KV cache."""
    with tempfile.TemporaryDirectory() as directory:
        with Checkpoint.open(lay_out(shape, scheme, Path(directory) / "model")) as checkpoint:
            source = load_model(checkpoint)
            if source.parameters != shape.parameters:
                raise ValueError(f"{shape.name}: {source.parameters:,} parameters, published {shape.parameters:,}")
            return [ledger_of(source, kv_cache) for kv_cache in kv_caches]


def _table(head: list[str], rows: list[list[str]]) -> str:
    return "\n".join("| " + " | ".join(row) + " |" for row in (head, ["---"] * len(head), *rows))


def scheme_row(scheme: str) -> list[str]:
    """``scheme | weights, memory`` of every shape."""
    cells = []
    for shape in SHAPES:
        (ledger,) = measure(shape, scheme)
        cells.append(f"{human_bytes(ledger.weight_bytes)} / {human_bytes(ledger.resident_bytes)}")
    return [scheme, *cells]


def kv_row(shape: Shape) -> list[str]:
    """``model | KV of 1,000 tokens`` for every type of cache."""
    return [
        shape.name,
        *(human_bytes(1000 * ledger.kv_bytes_per_token) for ledger in measure(shape, "W4A16", KV_CACHES)),
    ]


def scheme_table() -> str:
    """Weights on disk and memory of the process, by scheme and shape."""
    return _table(["scheme", *(shape.name for shape in SHAPES)], [scheme_row(scheme) for scheme in SCHEMES])


def kv_table() -> str:
    """What 1,000 tokens of context take, by shape and type of KV cache."""
    return _table(["1,000 tokens of", *KV_CACHES], [kv_row(shape) for shape in SHAPES])


TABLES = {"memory": scheme_table, "kv": kv_table}


def _block(name: str) -> re.Pattern[str]:
    return re.compile(rf"(<!-- {name} -->\n)(.*?)(<!-- /{name} -->)", re.DOTALL)


def block_of(text: str, name: str) -> str:
    """What stands on a page between ``<!-- NAME -->`` and ``<!-- /NAME -->``."""
    match = _block(name).search(text)
    if match is None:
        raise ValueError(f"the page has no block <!-- {name} --> … <!-- /{name} -->")
    return match.group(2).strip("\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true", help=f"replace the tables in {PAGE.name}")
    arguments = parser.parse_args()
    text = PAGE.read_text(encoding="utf-8") if arguments.write else ""
    for name, table in TABLES.items():
        if arguments.write:
            text = _block(name).sub(rf"\1{table()}\n\3", text)
        else:
            print(table(), end="\n\n")
    if arguments.write:
        staged = PAGE.with_suffix(".new")
        staged.write_text(text, encoding="utf-8")
        os.replace(staged, PAGE)


if __name__ == "__main__":
    main()
