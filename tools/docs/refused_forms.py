# SPDX-License-Identifier: Apache-2.0
"""The refusals' part of docs/support.md: forms that are not read, and the sentence that whoever opens one is told. Part
of ``support_matrix.py``.
"""

import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from linnet.errors import LinnetError
from linnet.formats import Checkpoint
from linnet.formats.quantization import read_quantization
from linnet.formats.recognise import UNREAD_METHODS
from linnet.gguf import NAMED_TYPES
from linnet.gguf.writer import GgufWriter, PlannedTensor
from linnet.models import load_model
from linnet.schemes.layouts.gguf import GGUF_LAYOUTS

HEAD = """
## What is refused, in words

Before any weight is read. Whoever opens such a model is told what stands here, behind its path.

| published as | form | what is said |
|---|---|---|
"""
GROUP = {"num_bits": 4, "type": "int", "strategy": "group", "group_size": 128}
BLOCKS = {"weight_block_size": [128, 128]}


def _records() -> Iterator[tuple[str, str, dict[str, Any]]]:
    """(published as, form, ``quantization_config``)."""
    packed = {"quant_method": "compressed-tensors", "format": "pack-quantized"}
    of_linears: dict[str, Any] = {"targets": ["Linear"], "weights": GROUP}
    five = {**of_linears, "weights": {**GROUP, "num_bits": 5}}
    outputs = {**of_linears, "output_activations": {**GROUP, "num_bits": 8}}
    yield "compressed-tensors", "5 bits", {**packed, "config_groups": {"group_0": five}}
    yield "compressed-tensors", "quantised outputs", {**packed, "config_groups": {"group_0": outputs}}
    yield "compressed-tensors", "Marlin's order, 2:4", {**packed, "format": "marlin-24", "config_groups": {}}
    gptq: dict[str, Any] = {"quant_method": "gptq", "bits": 4, "group_size": 128}
    yield "GPTQ", "5 bits", {**gptq, "bits": 5}
    yield "GPTQ", "Marlin's order", {**gptq, "checkpoint_format": "marlin"}
    awq: dict[str, Any] = {"quant_method": "awq", "bits": 4, "group_size": 128, "zero_point": True}
    yield "AWQ", "3 bits", {**awq, "bits": 3}
    yield "AWQ", "Marlin's order", {**awq, "version": "marlin"}
    yield "fp8", "activation scales that are powers of two", {"quant_method": "fp8", "scale_fmt": "ue8m0", **BLOCKS}
    yield "fp8", "blocks, static activations", {"quant_method": "fp8", "activation_scheme": "static", **BLOCKS}
    yield "quanto", "quantised activations", {"quant_method": "quanto", "weights": "int4", "activations": "int8"}
    yield "BitNet", "norms inside linears", {"quant_method": "bitnet", "use_rms_norm": True}
    for method, name in UNREAD_METHODS.items():
        yield name, "any", {"quant_method": method}


def _said(error: LinnetError, path: str) -> str:
    return str(error).removeprefix(f"{path}: ").replace("|", "\\|")


def _of_records() -> Iterator[str]:
    for published, form, record in _records():
        try:
            read_quantization({"quantization_config": record}, "config.json")
            raise AssertionError(f"{published}, {form} is read")
        except LinnetError as error:
            yield f"| {published} | {form} | {_said(error, 'config.json')} |\n"


def _of_types(folder: Path) -> Iterator[str]:
    """Types of tensors that a GGUF file may have: a file has one matrix of each."""
    for name, kind in NAMED_TYPES.items():
        if name in GGUF_LAYOUTS or name in ("F32", "F16", "BF16"):
            continue
        path = folder / "model.gguf"
        planned = PlannedTensor("token_embd.weight", kind, (256, 256))
        metadata = {"general.architecture": "llama", **{f"llama.{key}": value for key, value in KEYS.items()}}
        with path.open("wb") as file:
            writer = GgufWriter(file, metadata, [planned])
            writer.write(planned.name, [np.zeros(planned.nbytes, np.uint8)])
            writer.finish()
        try:
            with Checkpoint.open(path):
                load_model(path)
            raise AssertionError(f"{name} is read")
        except LinnetError as error:
            yield f"| GGUF | {name} | {_said(error, str(path))} |\n"


KEYS = {
    "context_length": 64,
    "embedding_length": 256,
    "block_count": 1,
    "feed_forward_length": 256,
    "attention.head_count": 4,
    "attention.head_count_kv": 4,
    "attention.layer_norm_rms_epsilon": 1e-5,
    "vocab_size": 256,
}


def section() -> str:
    """The table."""
    with tempfile.TemporaryDirectory() as folder:
        return HEAD + "".join(_of_records()) + "".join(_of_types(Path(folder)))
