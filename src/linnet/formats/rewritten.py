# SPDX-License-Identifier: Apache-2.0
"""Tensor files of which some tensors are computed from what is stored, each time they are read, or are new names."""

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
    """Implements ``TensorFiles`` over others; ``raw``, ``mapped`` and hashes are still of what is stored.

    ``copies``: new name -> the stored tensor that it starts from. ``settings``: what the config says instead.
    """

    def __init__(
        self, files: TensorFiles, rewrite: Rewrite, copies: Mapping[str, str], settings: Mapping[str, Any]
    ) -> None:
        self._files, self._rewrite, self._copies, self._settings = files, rewrite, copies, settings

    @property
    def tensors(self) -> Mapping[str, TensorInfo]:
        """See TensorFiles."""
        stored = self._files.tensors
        return dict(sorted({**stored, **{name: stored[old] for name, old in self._copies.items()}}.items()))

    @property
    def config(self) -> dict[str, Any]:
        """See TensorFiles."""
        return {**self._files.config, **self._settings}

    @property
    def described_by(self) -> Path:
        """See TensorFiles."""
        return self._files.described_by

    def view(self, name: str) -> Array:
        """See TensorFiles: computed, or the stored view."""
        rewritten = self._rewrite(name, self._stored)
        return self._stored(name) if rewritten is None else rewritten

    def _stored(self, name: str) -> Array:
        return self._files.view(self._copies.get(name, name))

    def raw(self, name: str) -> memoryview:
        """See TensorFiles."""
        return self._files.raw(self._copies.get(name, name))

    def paths(self) -> tuple[Path, ...]:
        """See TensorFiles."""
        return self._files.paths()

    def mapped(self) -> tuple[npt.NDArray[np.uint8], ...]:
        """See TensorFiles."""
        return self._files.mapped()

    def close(self) -> None:
        """See TensorFiles."""
        self._files.close()
