# SPDX-License-Identifier: Apache-2.0
"""gpt-oss' form: the experts of a mixture in 4-bit floats, all those of a layer in two tensors.

``NAME_blocks`` uint8 [experts, outputs, groups, 16] holds 32 inputs to a group, the first code in the low nibble, as
canonical words have it: a view of the file. ``NAME_scales`` uint8 [experts, outputs, groups]: exponents of two plus
127. The weight is [experts * outputs, inputs]; expert e is its rows [e * outputs, (e + 1) * outputs), a view too.
Biases, and whatever else the model has, are dense.
"""

from collections.abc import Mapping
from math import prod
from typing import Any

import numpy as np

from linnet.errors import CheckpointError
from linnet.formats.forms.base import ReadTensor, Tensors
from linnet.formats.forms.fp4_linear import powers_of_two
from linnet.formats.prescription import Quantization
from linnet.schemes import LinearScheme, PackedWeight, Scheme
from linnet.schemes.layouts import OWN

BLOCKS, SCALES = "_blocks", "_scales"
GROUP, GROUP_BYTES = 32, 16
SCHEME = LinearScheme(Scheme("fp4_e2m1", "group", GROUP, scale_dtype="bf16"))


class Mxfp4:
    """Implements ``Form``."""

    methods: tuple[str, ...] = ("mxfp4",)
    suffixes: tuple[str, ...] = ()
    repacks = False

    def for_record(self, record: Mapping[str, Any], where: str) -> "Mxfp4":
        """See Form.for_record."""
        return self

    def read_config(self, record: Mapping[str, Any], where: str) -> Quantization:
        """See Form.read_config. Which modules are left dense their tensors say."""
        return Quantization("mxfp4")

    def module_of(self, name: str) -> str:
        """See Form.module_of."""
        for suffix in (BLOCKS, SCALES):
            if name.endswith(suffix):
                return name.removesuffix(suffix)
        return name.rpartition(".")[0]

    def claims(self, module: str, tensors: Tensors) -> bool:
        """See Form.claims."""
        return module + BLOCKS in tensors

    def scheme(self, module: str, prescribed: LinearScheme | None, tensors: Tensors, where: str) -> LinearScheme:
        """See Form.scheme."""
        return SCHEME

    def shape(
        self, module: str, scheme: LinearScheme, tensors: Tensors, tensor: ReadTensor, where: str
    ) -> tuple[int, int]:
        """See Form.shape."""
        info = tensors[module + BLOCKS]
        if info.dtype != "uint8" or len(info.shape) != 4 or 0 in info.shape or info.shape[3] != GROUP_BYTES:
            raise CheckpointError(
                f"{where}: {module}{BLOCKS} is {info.dtype} {list(info.shape)}; uint8 [experts, outputs, groups, "
                f"{GROUP_BYTES}] is needed"
            )
        return prod(info.shape[:2]), info.shape[2] * GROUP

    def read(self, module: str, scheme: LinearScheme, tensors: Tensors, tensor: ReadTensor, where: str) -> PackedWeight:
        """See Form.read."""
        shown = f"{where}: {module}"
        shape = self.shape(module, scheme, tensors, tensor, where)
        wanted, info = tensors[module + BLOCKS].shape[:3], tensors.get(module + SCALES)
        if info is None or info.dtype != "uint8" or info.shape != wanted:
            found = "missing" if info is None else f"{info.dtype} {list(info.shape)}"
            raise CheckpointError(f"{shown}{SCALES} is {found}; uint8 {list(wanted)} is needed")
        blocks = np.ascontiguousarray(tensor(module + BLOCKS))
        arrays = {
            "weight_packed": blocks.reshape(shape[0], -1).view(np.int32),
            "weight_scale": powers_of_two(tensor(module + SCALES), shown + SCALES).reshape(shape[0], -1),
            "weight_shape": np.array(shape, np.int64),
        }
        packed = PackedWeight(scheme, shape, OWN, arrays)
        packed.check(shown)
        return packed
