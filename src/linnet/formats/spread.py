# SPDX-License-Identifier: Apache-2.0
"""Tensor files of which some modules' weights are shown dense, since no scheme holds what lies there."""

from collections.abc import Mapping
from functools import cached_property
from math import prod
from typing import Any

import numpy.typing as npt

from linnet.formats.forms.base import Spread
from linnet.formats.header import TensorInfo
from linnet.formats.tensor_files import FilesOverOthers, TensorFiles

Array = npt.NDArray[Any]
FP32_BYTES = 4


class SpreadFiles(FilesOverOthers):
    """Implements ``TensorFiles`` over others: of such a module there is ``weight``, fp32, computed each time it is
    read, and a bias. ``raw`` of it, ``mapped`` and hashes are of what is stored. CheckpointError: sizes that cannot
    be."""

    def __init__(self, files: TensorFiles, form: Spread) -> None:
        self._files, self._form = files, form
        self.config, self.described_by = files.config, files.described_by
        stored = files.tensors
        self._shapes = form.plain_modules(stored, files.view, str(files.described_by.parent))

    @property
    def spreads(self) -> bool:
        """Whether there is any such module."""
        return bool(self._shapes)

    @cached_property
    def tensors(self) -> Mapping[str, TensorInfo]:
        """See TensorFiles."""
        stored = self._files.tensors
        left = {name: info for name, info in stored.items() if name.rpartition(".")[0] not in self._shapes}
        biases = {name: stored[name] for module in self._shapes if (name := f"{module}.bias") in stored}
        dense = {
            f"{module}.weight": TensorInfo("fp32", shape, prod(shape) * FP32_BYTES, stored[self._codes(module)].file, 0)
            for module, shape in self._shapes.items()
        }
        return dict(sorted({**left, **biases, **dense}.items()))

    def view(self, name: str) -> Array:
        """See TensorFiles."""
        module = name.removesuffix(".weight")
        if module not in self._shapes or module == name:
            return self._files.view(name)
        info = self._files.tensors[self._codes(module)]
        where = str(self.described_by.parent / info.file)
        values = self._form.plain_values(module, self._files.tensors, self._files.view, where)
        values.setflags(write=False)
        return values

    def raw(self, name: str) -> memoryview:
        """See TensorFiles."""
        module = name.removesuffix(".weight")
        spread = module in self._shapes and module != name
        return self._files.raw(self._codes(module) if spread else name)

    def _codes(self, module: str) -> str:
        """The tensor that holds a module's codes."""
        return next(name for leaf in self._form.suffixes if (name := f"{module}.{leaf}") in self._files.tensors)


def spread(files: TensorFiles, form: object) -> TensorFiles:
    """The files as they are, where the form has no such modules."""
    if not isinstance(form, Spread):
        return files
    found = SpreadFiles(files, form)
    return found if found.spreads else files
