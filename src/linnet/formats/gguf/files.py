# SPDX-License-Identifier: Apache-2.0
"""A GGUF file under a Checkpoint: the same tensors as in the model's Hugging Face directory, by the same names.

Everything is a view of the mapped file except what converters changed: query and key rows of files that pair them, and
rows of fused ones that were taken out of their groups, are gathered back when asked for, gains that carry a 1 have it
subtracted, numbers that the family publishes [inputs, outputs] are turned. Of a tensor that holds all experts' each is
one of its own. A quantised tensor is its blocks, uint8 [rows, bytes of a row]; its TensorInfo says ggml's name of the
type as dtype and the shape in elements.
"""

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from linnet.errors import CheckpointError, UnsupportedError
from linnet.formats.dtypes import NUMPY_TO_NAME
from linnet.formats.gguf.config import ROPE_TENSORS, architecture_of, config_of
from linnet.formats.gguf.names import Named, grouped_rows, halved_rows, to_hugging_face
from linnet.formats.header import TensorInfo
from linnet.gguf import PLAIN_DTYPES, GgufModel, GgufTensor
from linnet.schemes import PackedWeight
from linnet.schemes.layouts.gguf import BLOCKS, GGUF_LAYOUTS

Array = npt.NDArray[Any]

_NOT_WEIGHTS = (*ROPE_TENSORS, "rope.freqs")


class GgufFiles:
    """Implements ``TensorFiles``; ``config`` is what config.json would say."""

    def __init__(self, path: str | Path) -> None:
        """Raises CheckpointError (damaged, lying) and UnsupportedError (nothing here runs it)."""
        self.model = GgufModel(path)
        self.config = config_of(self.model) | {"quantization_config": {"quant_method": "gguf"}}
        self.described_by = self.model.path
        architecture = architecture_of(self.model)
        self._named: dict[str, Named] = {}
        self._theirs: dict[str, str] = {}
        self._expert: dict[str, int] = {}  # its place in a tensor that holds all experts'
        tensors: dict[str, TensorInfo] = {}
        for theirs, tensor in self.model.tensors.items():
            if theirs in _NOT_WEIGHTS or theirs.endswith(".attn_rot_embd"):
                continue
            named = to_hugging_face(architecture, theirs)
            if named is None:
                raise UnsupportedError(
                    f"{self.model.path}: tensor {theirs!r} is none that the architecture {architecture.name} has here"
                )
            if "{expert}" not in named.name:
                self._named[named.name], self._theirs[named.name] = named, theirs
                tensors[named.name] = self._info(named, tensor)
                continue
            wanted = ("experts", "rows") if theirs.endswith(".bias") else ("experts", "rows", "columns")
            if len(tensor.shape) != len(wanted):
                raise CheckpointError(f"{self.model.path}: tensor {theirs!r} is not [{', '.join(wanted)}]")
            size = tensor.nbytes // tensor.shape[0]
            for expert in range(tensor.shape[0]):
                own = Named(named.name.replace("{expert}", str(expert)), named.change)
                part = replace(tensor, shape=tensor.shape[1:], nbytes=size, offset=tensor.offset + expert * size)
                self._named[own.name], self._theirs[own.name], self._expert[own.name] = own, theirs, expert
                tensors[own.name] = self._info(own, part)
        self.tensors = dict(sorted(tensors.items()))

    def view(self, name: str) -> Array:
        """The stored array, a read-only mapped view; gathered or subtracted (a new array) where the file differs."""
        array = self.model.view(self._theirs[name])
        if name in self._expert:
            array = array[self._expert[name]]
        change = self._named[name].change
        if change == "paired rows":
            array = array[halved_rows(len(array), self._heads(name))]
        elif change == "in groups":
            array = array[grouped_rows(len(array), *self._heads_and_groups())]
        elif change == "turned" and self.tensors[name].dtype in NUMPY_TO_NAME.values():
            array = array.T
        elif change == "one row":
            array = array.reshape(1, -1)
        elif change == "plus one":
            array = array.astype(np.float32) - np.float32(1)
        elif change == "decay":
            array = np.log(-array.astype(np.float32)).reshape(self.tensors[name].shape)
        elif change == "heads":
            array = array.reshape(-1, array.shape[-1])
        elif change == "turned heads":
            array = turned_heads(array, self.model.tensors[self._theirs[name]], f"{self.model.path}: {name}")
        elif change in ("flat", "channels"):
            array = array.reshape(self.tensors[name].shape)
        array.setflags(write=False)
        return array

    def raw(self, name: str) -> memoryview:
        """The tensor's bytes as they are stored, with nothing undone."""
        whole = self.model.raw(self._theirs[name])
        if name not in self._expert:
            return whole
        size, expert = self.tensors[name].nbytes, self._expert[name]
        return whole[expert * size : (expert + 1) * size]

    def paths(self) -> tuple[Path, ...]:
        """Every file."""
        return tuple(part.path for part in self.model.parts)

    def mapped(self) -> tuple[npt.NDArray[np.uint8], ...]:
        """The bytes of every file, in the order of ``paths``."""
        return tuple(part.whole() for part in self.model.parts)

    def close(self) -> None:
        """Unmap; views still alive stay valid until they die."""
        self.model.close()

    def _heads(self, name: str) -> int:
        which = "num_attention_heads" if ".q_proj." in name else "num_key_value_heads"
        return int(self.config[which])

    def _heads_and_groups(self) -> tuple[int, int]:
        heads = int(self.config["num_attention_heads"])
        return heads, int(self.config.get("num_kv_heads", heads))

    def _info(self, named: Named, tensor: GgufTensor) -> TensorInfo:
        label = f"{self.model.path}: tensor {tensor.name!r}"
        plain = tensor.type.plain
        dtype = NUMPY_TO_NAME[PLAIN_DTYPES[tensor.type.name]] if plain else tensor.type.name
        nbytes = tensor.nbytes
        if named.change == "paired rows":
            heads = self._heads(named.name)
            if tensor.shape[0] % (2 * heads):
                raise CheckpointError(f"{label}: {tensor.shape[0]} rows are not {heads} heads of an even size")
        elif named.change in ("heads", "turned heads"):
            return _of_heads(named, tensor, dtype, label)
        elif named.change in ("plus one", "decay", "flat", "channels") and not plain:
            raise UnsupportedError(f"{label}: stored as {tensor.type.name}; of these, plain numbers are supported")
        elif named.change == "plus one":
            dtype, nbytes = "fp32", 4 * math.prod(tensor.shape)
        elif named.change == "decay":
            shape = tensor.shape[:-1] if tensor.shape[-1] == 1 else tensor.shape
            return TensorInfo("fp32", shape, 4 * math.prod(shape), tensor.file, tensor.offset)
        elif named.change == "flat":
            return TensorInfo(dtype, (math.prod(tensor.shape),), nbytes, tensor.file, tensor.offset)
        elif named.change == "channels":
            shape = (tensor.shape[0], 1, *tensor.shape[1:])
            return TensorInfo(dtype, shape, nbytes, tensor.file, tensor.offset)
        elif named.change == "one row" and plain:
            return TensorInfo(dtype, (1, math.prod(tensor.shape)), nbytes, tensor.file, tensor.offset)
        elif named.change == "turned" and plain:
            return TensorInfo(dtype, tensor.shape[::-1], nbytes, tensor.file, tensor.offset)
        elif named.change == "in groups":
            heads, groups = self._heads_and_groups()
            if heads % groups or tensor.shape[0] % (heads + 2 * groups):
                raise CheckpointError(f"{label}: {tensor.shape[0]} rows are not {heads} queries and {groups} keys")
        return TensorInfo(dtype, tensor.shape, nbytes, tensor.file, tensor.offset)


def _of_heads(named: Named, tensor: GgufTensor, dtype: str, label: str) -> TensorInfo:
    """Of a matrix for every head: [heads * outputs, inputs]."""
    if len(tensor.shape) != 3:
        raise CheckpointError(f"{label} has {len(tensor.shape)} dimensions; a matrix for every head is needed")
    heads, outputs, inputs = tensor.shape
    if named.change == "heads":
        return TensorInfo(dtype, (heads * outputs, inputs), tensor.nbytes, tensor.file, tensor.offset)
    if not tensor.type.plain and tensor.type.name not in GGUF_LAYOUTS:
        raise UnsupportedError(f"{label}: stored as {tensor.type.name}, which nothing here decodes")
    dtype, nbytes = (dtype, tensor.nbytes) if tensor.type.plain else ("fp32", 4 * math.prod(tensor.shape))
    return TensorInfo(dtype, (heads * inputs, outputs), nbytes, tensor.file, tensor.offset)


def turned_heads(array: Array, tensor: GgufTensor, where: str) -> Array:
    """[heads, inputs, outputs], as numbers or blocks of them -> [heads * outputs, inputs], blocks as fp32."""
    heads, inputs, outputs = tensor.shape
    if not tensor.type.plain:
        layout = GGUF_LAYOUTS[tensor.type.name]
        rows = {BLOCKS: array.reshape(heads * inputs, -1)}
        packed = PackedWeight(layout.scheme, (heads * inputs, outputs), layout, rows)
        packed.check(where)
        array = packed.dequantize().reshape(tensor.shape)
    return np.ascontiguousarray(array.swapaxes(1, 2)).reshape(heads * outputs, inputs)
