# SPDX-License-Identifier: Apache-2.0
"""Tensors of a GGUF file: a tensor's own type says how its weight lies; no config says anything."""

from collections.abc import Mapping
from typing import Any

from linnet.errors import UnsupportedError
from linnet.formats.forms.base import ReadTensor, Tensors
from linnet.formats.prescription import Quantization
from linnet.schemes import LinearScheme, PackedWeight
from linnet.schemes.layouts.gguf import BLOCKS, GGUF_LAYOUTS


class Gguf:
    """Implements ``Form``."""

    methods: tuple[str, ...] = ("gguf",)
    suffixes: tuple[str, ...] = ("weight",)
    repacks: bool = False

    def for_record(self, record: Mapping[str, Any], where: str) -> "Gguf":
        """See Form.for_record."""
        return self

    def read_config(self, record: Mapping[str, Any], where: str) -> Quantization:
        """See Form.read_config."""
        return Quantization("gguf")

    def module_of(self, name: str) -> str:
        """See Form.module_of."""
        return name.rpartition(".")[0]

    def claims(self, module: str, tensors: Tensors) -> bool:
        """See Form.claims."""
        info = tensors.get(f"{module}.weight")
        return info is not None and info.dtype in GGUF_LAYOUTS

    def scheme(self, module: str, prescribed: LinearScheme | None, tensors: Tensors, where: str) -> LinearScheme:
        """See Form.scheme."""
        return GGUF_LAYOUTS[tensors[f"{module}.weight"].dtype].scheme

    def shape(
        self, module: str, scheme: LinearScheme, tensors: Tensors, tensor: ReadTensor, where: str
    ) -> tuple[int, int] | None:
        """See Form.shape."""
        return None

    def read(self, module: str, scheme: LinearScheme, tensors: Tensors, tensor: ReadTensor, where: str) -> PackedWeight:
        """See Form.read."""
        info = tensors[f"{module}.weight"]
        if len(info.shape) != 2:
            raise UnsupportedError(f"{where}: {module} has {len(info.shape)} dimensions; blocks are read in two")
        layout = GGUF_LAYOUTS[info.dtype]
        packed = PackedWeight(scheme, (info.shape[0], info.shape[1]), layout, {BLOCKS: tensor(f"{module}.weight")})
        packed.check(f"{where}: {module}")
        return packed
