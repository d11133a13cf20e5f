# SPDX-License-Identifier: Apache-2.0
"""The weights of a model that is converted: one by one, a few rows at a time, whatever form they lie in."""

from collections.abc import Iterator
from dataclasses import dataclass
from math import lcm
from typing import Any

import numpy as np
import numpy.typing as npt

from linnet.errors import UnsupportedError
from linnet.formats.checkpoint import Checkpoint
from linnet.formats.prescription import CACHE_SCALES
from linnet.schemes import LinearScheme, PackedWeight
from linnet.schemes.gguf_blocks import BLOCK_TYPES

Array = npt.NDArray[Any]

_SLICE_ELEMENTS = 1 << 21
EMBEDDING, HEAD = "model.embed_tokens", "lm_head"
_BUFFERS = ("rotary_emb.inv_freq", "rotary_emb.cos_cached", "rotary_emb.sin_cached")
"""Computed from the config by everyone; some files store them all the same."""


@dataclass(frozen=True)
class SourceTensor:
    """One weight, bias or norm. ``name`` is the dense tensor's; ``scheme`` None: it lies as plain numbers."""

    name: str
    shape: tuple[int, ...]
    stored: str
    scheme: LinearScheme | None

    @property
    def module(self) -> str:
        """The name without ``.weight``."""
        return self.name.rpartition(".")[0]

    @property
    def block_type(self) -> str | None:
        """ggml's name of the blocks it lies in, if it does."""
        return self.stored if self.stored in BLOCK_TYPES else None

    @property
    def outer(self) -> bool:
        """Embedding or head: what costs little per token and much when it is off."""
        return self.module in (EMBEDDING, HEAD)


def list_tensors(checkpoint: Checkpoint) -> tuple[SourceTensor, ...]:
    """Every tensor once, quantised modules as one; embedding first, then layer by layer, norm and head last. Scales of
    a KV cache are no weights and not among them."""
    summed = next(iter(checkpoint.quantization.terms), None)
    if summed is not None:
        raise UnsupportedError(
            f"{checkpoint.path}: {summed} is a sum of terms (a low-rank one among them), for which no other form has "
            "a word; convert the original, or what was compressed without such a step"
        )
    if checkpoint.quantization.rotations:
        rotated = ", ".join(checkpoint.quantization.rotations[0].targets)[:80]
        raise UnsupportedError(
            f"{checkpoint.path}: {rotated} is rotated at run time, which no other form says; convert the original, "
            "or what was compressed without such a rotation"
        )
    tensors: dict[str, SourceTensor] = {}
    tied = bool(checkpoint.config.get("tie_word_embeddings")) and checkpoint.holds(EMBEDDING)
    for name in checkpoint.names():
        module, last = checkpoint.module_of(name), name.rpartition(".")[2]
        if name.endswith(_BUFFERS) or (tied and module == HEAD) or CACHE_SCALES.search(name):
            continue
        scheme = None if last == "bias" else checkpoint.scheme_of(module)
        if scheme is None:
            info = checkpoint.info(name)
            tensors[name] = SourceTensor(name, info.shape, info.dtype, None)
        elif len(checkpoint.info(name).shape) > 2:
            raise UnsupportedError(
                f"{checkpoint.path}: {module} holds the experts of a mixture, which are not converted"
            )
        elif f"{module}.weight" not in tensors:
            weight = checkpoint.linear(module)
            assert isinstance(weight, PackedWeight)
            plain = scheme.weight.numbers.plain  # without its zeros: numbers all the same
            stored = scheme.weight.element if plain else weight.layout.name
            whole = SourceTensor(f"{module}.weight", weight.shape, stored, None if plain else scheme)
            tensors[whole.name] = whole
    return tuple(sorted(tensors.values(), key=_place))


def open_weight(checkpoint: Checkpoint, tensor: SourceTensor) -> Array | PackedWeight:
    """The stored array or the packed weight."""
    dense = tensor.scheme is None and tensor.name in checkpoint
    return checkpoint.tensor(tensor.name) if dense else checkpoint.linear(tensor.module)


def row_slices(weight: Array | PackedWeight, height: int = 1) -> Iterator[tuple[int, int]]:
    """Half-open row ranges of a few million elements each, whole blocks of rows where those share a scale; ``height``
    rows share one in what is made of them."""
    rows = weight.shape[0]
    columns = int(np.prod(weight.shape[1:], dtype=np.int64))
    if isinstance(weight, PackedWeight) and weight.scheme.weight.block is not None:
        height = lcm(height, weight.scheme.weight.block[0])
    step = max(1, _SLICE_ELEMENTS // max(1, columns * height)) * height
    return ((start, min(rows, start + step)) for start in range(0, rows, step))


def rows_of(weight: Array | PackedWeight, start: int, stop: int) -> Array | PackedWeight:
    """A slice of the rows, in the same form."""
    return weight.take_rows([(start, stop)]) if isinstance(weight, PackedWeight) else weight[start:stop]


def values_of(weight: Array | PackedWeight) -> Array:
    """fp32 numbers, as every reader of the source computes them."""
    if isinstance(weight, PackedWeight):
        return np.ascontiguousarray(weight.dequantize())
    if weight.dtype.kind not in "fV" and weight.dtype.name not in ("bfloat16",):
        raise UnsupportedError(f"a tensor of {weight.dtype} is no weight that could be converted")
    return np.ascontiguousarray(weight).astype(np.float32)


def hashable(values: Array) -> memoryview:
    """The bytes of fp32 numbers that are hashed: minus zero counts as zero."""
    return (values + np.float32(0)).data.cast("B")


def _place(tensor: SourceTensor) -> tuple[int, int, str]:
    parts = tensor.name.split(".")
    layer = next((int(part) for part in parts if part.isdigit()), None)
    if layer is not None:
        return 1, layer, tensor.name
    return (0 if tensor.module == EMBEDDING else 2), 0, tensor.name
