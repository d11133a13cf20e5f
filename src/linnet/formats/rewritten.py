# SPDX-License-Identifier: Apache-2.0
"""Tensor files of which some tensors are computed from what is stored, each time they are read."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from linnet.formats.header import TensorInfo
from linnet.formats.tensor_files import TensorFiles

Array = npt.NDArray[Any]
Rewrite = Callable[[str, Callable[[str], Array]], Array | None]
"""(name, view of the stored tensor of a name) -> its new array of the same shape, None: as it is stored."""


class RewrittenFiles:
    """Implements ``TensorFiles`` over others; ``raw``, ``mapped`` and hashes are still of what is stored."""

    def __init__(self, files: TensorFiles, rewrite: Rewrite) -> None:
        self._files, self._rewrite = files, rewrite

    @property
    def tensors(self) -> Mapping[str, TensorInfo]:
        """See TensorFiles."""
        return self._files.tensors

    @property
    def config(self) -> dict[str, Any]:
        """See TensorFiles."""
        return self._files.config

    @property
    def described_by(self) -> Path:
        """See TensorFiles."""
        return self._files.described_by

    def view(self, name: str) -> Array:
        """See TensorFiles: computed, or the stored view."""
        rewritten = self._rewrite(name, self._files.view)
        return self._files.view(name) if rewritten is None else rewritten

    def raw(self, name: str) -> memoryview:
        """See TensorFiles."""
        return self._files.raw(name)

    def paths(self) -> tuple[Path, ...]:
        """See TensorFiles."""
        return self._files.paths()

    def mapped(self) -> tuple[npt.NDArray[np.uint8], ...]:
        """See TensorFiles."""
        return self._files.mapped()

    def close(self) -> None:
        """See TensorFiles."""
        self._files.close()
