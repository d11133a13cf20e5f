# SPDX-License-Identifier: Apache-2.0
"""Tensor files of which some tensors are computed from what is stored, each time they are read, or are new names."""

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field, replace
from math import prod
from pathlib import Path
from typing import Any

import numpy.typing as npt

from linnet.formats.header import TensorInfo
from linnet.formats.prescription import Rotation
from linnet.formats.tensor_files import FilesOverOthers, TensorFiles

Array = npt.NDArray[Any]
Rewrite = Callable[[str, Callable[[str], Array]], Array | None]
"""(name, view of the stored tensor of a name) -> its new array, None: as it is stored."""


@dataclass(frozen=True)
class Rewritten:
    """What else than values is other than stored. ``copies``: new name -> the stored tensor that it starts from, whose
    own name stays unless it is another's; ``left_out``: names that there are no more; ``shapes``: of tensors whose
    rewrite has another than is stored; ``settings``: what the config says instead; ``rotations``: what is rotated at
    run time as well."""

    copies: Mapping[str, str] = field(default_factory=dict)
    left_out: Collection[str] = ()
    shapes: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    settings: Mapping[str, Any] = field(default_factory=dict)
    rotations: tuple[Rotation, ...] = ()


class RewrittenFiles(FilesOverOthers):
    """Implements ``TensorFiles`` over others; ``raw``, ``mapped`` and hashes are still of what is stored."""

    def __init__(self, files: TensorFiles, rewrite: Rewrite, other: Rewritten) -> None:
        self._files, self._rewrite, self._other = files, rewrite, other

    @property
    def tensors(self) -> Mapping[str, TensorInfo]:
        """See TensorFiles."""
        stored, other = self._files.tensors, self._other
        found = {**stored, **{name: stored[old] for name, old in other.copies.items()}}
        shaped = {name: _with_shape(found[name], shape) for name, shape in other.shapes.items()}
        return {name: info for name, info in sorted({**found, **shaped}.items()) if name not in other.left_out}

    @property
    def config(self) -> dict[str, Any]:
        """See TensorFiles."""
        return {**self._files.config, **self._other.settings}

    @property
    def described_by(self) -> Path:
        """See TensorFiles."""
        return self._files.described_by

    def view(self, name: str) -> Array:
        """See TensorFiles: computed, or the stored view."""
        rewritten = self._rewrite(name, self._stored)
        return self._stored(name) if rewritten is None else rewritten

    def _stored(self, name: str) -> Array:
        return self._files.view(self._other.copies.get(name, name))

    def raw(self, name: str) -> memoryview:
        """See TensorFiles."""
        return self._files.raw(self._other.copies.get(name, name))


def _with_shape(info: TensorInfo, shape: tuple[int, ...]) -> TensorInfo:
    """What a tensor of other sizes would say of itself."""
    return replace(info, shape=shape, nbytes=info.nbytes * prod(shape) // prod(info.shape))
