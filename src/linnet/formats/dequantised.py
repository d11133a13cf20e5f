# SPDX-License-Identifier: Apache-2.0
"""A compressed checkpoint's tensors as a dense model's: each is dequantised when it is read, one at a time."""

from collections.abc import Mapping
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from linnet.errors import UnsupportedError
from linnet.formats.dtypes import NAME_TO_NUMPY
from linnet.formats.header import TensorInfo
from linnet.schemes import PackedWeight

if TYPE_CHECKING:
    from linnet.formats.checkpoint import Checkpoint

Array = npt.NDArray[Any]

_TYPES = {"float32": "fp32", "float16": "fp16", "bfloat16": "bf16"}
_RECORDS = ("quantization_config", "compression_config")


class DequantisedFiles:
    """Implements ``TensorFiles``. Weights come in the type that the config names, bf16 if it names none.

    ``raw``, ``mapped`` and ``paths`` are still of what is stored; of a dequantised weight there is no ``raw``.
    """

    def __init__(self, checkpoint: "Checkpoint", config: Mapping[str, Any]) -> None:
        if checkpoint.quantization.terms:
            raise UnsupportedError(
                f"{checkpoint.path}: some of its linears are sums of several terms, which cannot be a source again"
            )
        self._checkpoint = checkpoint
        self._schemes = checkpoint.schemes()
        self.config = {key: config[key] for key in config if key not in _RECORDS}
        named = config.get("dtype") or config.get("torch_dtype")
        self._dtype = _TYPES.get(str(named).removeprefix("torch."), "bf16")
        tensors = {
            name: checkpoint.info(name)
            for name in checkpoint.names()
            if checkpoint.module_of(name) not in self._schemes or name.endswith(".bias")
        }
        for module in self._schemes:
            shape = checkpoint.shape_of(module)
            nbytes = prod(shape) * NAME_TO_NUMPY[self._dtype].itemsize
            part = next(name for name in checkpoint.names() if checkpoint.module_of(name) == module)
            tensors[f"{module}.weight"] = TensorInfo(self._dtype, shape, nbytes, checkpoint.info(part).file, 0)
        self.tensors = dict(sorted(tensors.items()))

    @property
    def described_by(self) -> Path:
        """See TensorFiles."""
        return self._checkpoint.files.described_by

    def view(self, name: str) -> Array:
        """See TensorFiles: the stored view, or a weight as its codes and scales mean it, rounded to the type."""
        module = name.removesuffix(".weight")
        if module not in self._schemes or not name.endswith(".weight"):
            return self._checkpoint.tensor(name)
        packed = self._checkpoint.linear(module)
        assert isinstance(packed, PackedWeight)
        values = packed.dequantize().astype(NAME_TO_NUMPY[self._dtype])
        values.setflags(write=False)
        return values

    def raw(self, name: str) -> memoryview:
        """See TensorFiles."""
        return self._checkpoint.files.raw(name)

    def paths(self) -> tuple[Path, ...]:
        """See TensorFiles."""
        return self._checkpoint.files.paths()

    def mapped(self) -> tuple[npt.NDArray[np.uint8], ...]:
        """See TensorFiles."""
        return self._checkpoint.files.mapped()

    def close(self) -> None:
        """See TensorFiles."""
        self._checkpoint.close()
