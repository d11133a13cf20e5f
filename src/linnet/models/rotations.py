# SPDX-License-Identifier: Apache-2.0
"""What a checkpoint rotates at run time, module by module, checked against what the model is."""

from collections.abc import Mapping

import numpy as np

from linnet.errors import CheckpointError, UnsupportedError
from linnet.formats import Checkpoint
from linnet.formats.prescription import Rotation
from linnet.models.inventory import linear_shapes
from linnet.models.spec import ArchSpec


def rotations_of(spec: ArchSpec, checkpoint: Checkpoint) -> dict[str, int]:
    """Module -> channels of the runs that are rotated: of a linear's input, or of an attention's queries and keys.

    CheckpointError for a rotation of what is not there, twice of the same, or in runs that do not tile it.
    """
    found: dict[str, int] = {}
    for rotation in checkpoint.quantization.rotations:
        where = f"{checkpoint.path}: config.json rotates {', '.join(rotation.targets)[:80]}"
        if rotation.of == "input" and spec.head is not None and rotation.takes(spec.head):
            raise UnsupportedError(f"{where}, of which {spec.head} is one; the head's input cannot be rotated here")
        widths = {module: width for module, width in _widths(spec, rotation).items() if rotation.takes(module)}
        if not widths:
            what = "linear" if rotation.of == "input" else "attention"
            raise CheckpointError(f"{where}, but no {what} of a layer is called so")
        for module, width in widths.items():
            size = rotation.size or width
            if module in found:
                raise CheckpointError(f"{where}: {module} is rotated twice")
            if size < 2 or size & (size - 1) or width % size:
                raise CheckpointError(
                    f"{where} in runs of {size}, but {module} has {width} channels; accepted are powers of two that "
                    "divide them"
                )
            found[module] = size
    return found


def stored_matrices(checkpoint: Checkpoint, rotations: Mapping[str, int]) -> frozenset[str]:
    """Names of the tensors in which a writer (compressed-tensors does) left the matrix of a rotation of ``rotations``.

    CheckpointError if one holds another matrix than is meant.
    """
    found: set[str] = set()
    for rotation in checkpoint.quantization.rotations:
        names = {f"{module}.{leaf}": module for module in rotations for leaf in rotation.matrices}
        for name, module in names.items():
            if name not in checkpoint:
                continue
            size = rotations[module]
            if not np.array_equal(checkpoint.tensor(name).astype(np.float32), _sylvester(size)):
                raise CheckpointError(
                    f"{checkpoint.path}: {name} is not Sylvester's Hadamard matrix of order {size}, which config.json "
                    "says it is"
                )
            found.add(name)
    return frozenset(found)


def _sylvester(size: int) -> np.ndarray:
    """+-1 [size, size]."""
    matrix = np.ones((1, 1), np.float32)
    while len(matrix) < size:
        matrix = np.block([[matrix, matrix], [matrix, -matrix]])
    return matrix


def _widths(spec: ArchSpec, rotation: Rotation) -> dict[str, int]:
    """What there is to be rotated: columns of linears, or channels of heads."""
    if rotation.of == "input":
        return {module: columns for module, (_, columns) in linear_shapes(spec).items()}
    return {attention.module(layer): attention.head_size for layer, attention in spec.attentions.items()}
