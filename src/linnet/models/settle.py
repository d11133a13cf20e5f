# SPDX-License-Identifier: Apache-2.0
"""Where a config and its files disagree, the files decide: prefixes of names, tied heads, copies, biases."""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np

from linnet.errors import CheckpointError
from linnet.formats import Checkpoint
from linnet.models.prefixes import fit_prefix
from linnet.models.spec import ArchSpec, LayerSpec, Projection
from linnet.schemes.packed_weight import PackedWeight
from linnet.schemes.scheme import DENSE_BITS

SHOWN = 8
ROWS_AT_ONCE = 4096
SAME_MATRIX = 0.5
"""Relative error up to which a dense tensor counts as what a packed one was made from (two bits lose about 0.4)."""


def settle(spec: ArchSpec, checkpoint: Checkpoint) -> tuple[ArchSpec, list[str]]:
    """The spec as the files have it, and what the user should hear of. Raises CheckpointError where neither fits."""
    try:
        spec, warnings = fit_prefix(spec, checkpoint.names())
    except CheckpointError as error:
        raise CheckpointError(f"{checkpoint.path}: {error}") from None
    spec, tied = _settle_head(spec, checkpoint)
    spec, biases = _drop_missing_biases(spec, checkpoint)
    return spec, [*warnings, *tied, *_duplicates(spec, checkpoint), *biases]


def some(items: list[str]) -> list[str]:
    """The first few, and how many more."""
    return items if len(items) <= SHOWN else [*items[:SHOWN], f"... and {len(items) - SHOWN} more"]


def _settle_head(spec: ArchSpec, checkpoint: Checkpoint) -> tuple[ArchSpec, list[str]]:
    """A config may say "tied" while the files disagree; follow the files, as transformers does.

    Both there and equal (once dequantised): tied. Both there and different: not tied. Only the head: it is both.
    """
    if not spec.tied_head or spec.head is None or not checkpoint.holds(spec.head):
        return spec, []
    if not checkpoint.holds(spec.embedding):
        return replace(spec, embedding=spec.head), []
    head, embedding = checkpoint.linear(spec.head), checkpoint.linear(spec.embedding)
    if _equal(head, embedding):
        packed = isinstance(embedding, PackedWeight) and not isinstance(head, PackedWeight)
        note = f"{spec.head} repeats what the quantised {spec.embedding} holds; it is dropped"
        return spec, [note] if packed else []
    note = f"the config ties {spec.head} to {spec.embedding} but the file holds a different {spec.head}; it is used"
    return replace(spec, tied_head=False), [note]


def _equal(first: "np.ndarray[Any, Any] | PackedWeight", second: "np.ndarray[Any, Any] | PackedWeight") -> bool:
    """Whether two stored weights mean the same numbers."""
    if tuple(first.shape) != tuple(second.shape):
        return False
    if isinstance(first, PackedWeight) and isinstance(second, PackedWeight):
        same_form = first.scheme == second.scheme and first.arrays.keys() == second.arrays.keys()
        return same_form and all(_same_bits(first.arrays[name], second.arrays[name]) for name in first.arrays)
    if isinstance(first, PackedWeight):
        return _equal(second, first)
    if isinstance(second, PackedWeight):
        return all(np.array_equal(first[rows], part.astype(first.dtype)) for rows, part in _dequantised(second))
    return _same_bits(first, second)


def _dequantised(packed: PackedWeight) -> "Iterator[tuple[slice, np.ndarray[Any, Any]]]":
    """Some rows at a time, since a whole vocabulary in fp32 may be larger than the model."""
    for start in range(0, packed.shape[0], ROWS_AT_ONCE):
        stop = min(start + ROWS_AT_ONCE, packed.shape[0])
        yield slice(start, stop), packed.take_rows(((start, stop),)).dequantize()


def _relative_error(packed: PackedWeight, dense: "np.ndarray[Any, Any]") -> float:
    """Norm of the difference over that of the dense matrix; infinite where their shapes differ."""
    if tuple(packed.shape) != dense.shape:
        return np.inf
    lost = whole = 0.0
    for rows, part in _dequantised(packed):
        expected = np.asarray(dense[rows], np.float32)
        lost += float(np.square(part - expected, dtype=np.float64).sum())
        whole += float(np.square(expected, dtype=np.float64).sum())
    return float(np.sqrt(lost / max(whole, 1e-300)))


def _same_bits(first: "np.ndarray[Any, Any]", second: "np.ndarray[Any, Any]") -> bool:
    if first.dtype != second.dtype:
        return False
    bits = np.dtype(f"u{first.dtype.itemsize}")
    return bool(np.array_equal(first.view(bits), second.view(bits)))


def _duplicates(spec: ArchSpec, checkpoint: Checkpoint) -> list[str]:
    """Embedding or head stored packed and dense: the packed one counts, if the dense one is what it was made of."""
    warnings = []
    for module in dict.fromkeys((spec.embedding, spec.head)):
        if module is None:
            continue
        name = f"{module}.weight"
        if name not in checkpoint or checkpoint.info(name).dtype not in DENSE_BITS:
            continue
        if checkpoint.scheme_of(module) is None:  # before any weight is touched
            continue
        packed = checkpoint.linear(module)
        assert isinstance(packed, PackedWeight)
        lost = _relative_error(packed, checkpoint.tensor(name))
        if not lost <= SAME_MATRIX:
            raise CheckpointError(
                f"{checkpoint.path}: {module} is stored dense and quantised, and the two are not the same matrix"
            )
        warnings.append(f"{module} is stored dense and quantised (relative error {lost:.2g}); the dense one is dropped")
    return warnings


def _drop_missing_biases(spec: ArchSpec, checkpoint: Checkpoint) -> tuple[ArchSpec, list[str]]:
    """One flag of a config stands for several biases; some files hold only those that are not zero.

    A bias that is not stored is zero, if at least one of the same half of the blocks is stored.
    """
    missing: list[str] = []
    layers = spec.layers
    for half in ("mixer", "feed_forward"):
        wanted = [
            _bias_name(projection, index)
            for index, layer in enumerate(layers)
            if getattr(layer, half) is not None
            for projection in getattr(layer, half).projections
            if projection.bias
        ]
        absent = {name for name in wanted if name not in checkpoint}
        if not absent or len(absent) == len(set(wanted)):
            continue
        missing += sorted(absent)
        layers = tuple(_without_biases(layer, half, index, absent) for index, layer in enumerate(layers))
    note = f"biases that the config asks for and the files do not hold are zero: {', '.join(some(missing))}"
    return replace(spec, layers=layers), [note] if missing else []


def _bias_name(projection: Projection, layer: int) -> str:
    return f"{projection.module.format(layer=layer)}.bias"


def _without_biases(layer: LayerSpec, half: str, index: int, absent: set[str]) -> LayerSpec:
    part = getattr(layer, half)
    changes: dict[str, Any] = {
        name: replace(value, bias=False)
        for name, value in vars(part).items()
        if isinstance(value, Projection) and value.bias and _bias_name(value, index) in absent
    }
    changed: dict[str, Any] = {half: replace(part, **changes)}
    return replace(layer, **changed) if changes else layer
