# SPDX-License-Identifier: Apache-2.0
"""One weight into a scheme of the form that is written: with its own codes where the scheme can mean the same numbers,
group by group, and rounded where it cannot. A few rows at a time, several slices at once.
"""

import hashlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from linnet.errors import UnsupportedError
from linnet.formats.convert.choosing import Choice
from linnet.formats.convert.encoding import Converted, some_at_once, squares
from linnet.formats.convert.rounding import Codes, merged, round_weight
from linnet.formats.convert.source import SourceTensor, hashable, row_slices, rows_of, values_of
from linnet.formats.forms import WRITTEN_FORMS, WrittenForm
from linnet.formats.forms.written import has_whole_numbers, regrouped
from linnet.schemes import LinearScheme, PackedWeight, Scheme, dequantize, pack, round_scale
from linnet.schemes.codecs import per_weight
from linnet.schemes.packed_weight import COLUMN_ORDER

Array = npt.NDArray[Any]
Weight = Array | PackedWeight
SCALE_TOLERANCE = 2.0**-8
"""A scale that its type changes by more does not carry its codes: they are taken anew."""


@dataclass(frozen=True)
class _Part:
    codes: Codes
    values: Array
    error: float
    power: float


def repack(
    weight: Weight,
    tensor: SourceTensor,
    choice: Choice,
    form: WrittenForm,
    exact: bool,
    pool: ThreadPoolExecutor,
    threads: int,
) -> tuple[Converted, PackedWeight]:
    """What became of the weight, and the weight in a scheme of the form.

    UnsupportedError with ``exact`` if a number would change.
    """
    if exact and choice.held is None and tensor.scheme is not None:
        others = ", ".join([*_holders(tensor.scheme), "dense:F32"])
        raise _refusal(tensor, f"{form.name} has no word for its numbers; that hold them: {others}")
    target = choice.scheme
    if isinstance(weight, PackedWeight) and target == weight.scheme and _zero_points_serve(weight, form):
        return _as_it_is(weight, tensor, pool, threads)
    one = _slicer(weight, choice, form)
    height = 1 if target.weight.block is None else target.weight.block[0]
    parts: list[Codes] = []
    digest, error, power = hashlib.sha256(), 0.0, 0.0
    for part in some_at_once(pool, one, row_slices(weight, height), threads + 1):
        if exact and part.error > 0:
            raise _refusal(tensor, f"{form.name}: {_reason(tensor.scheme, target)}")
        digest.update(hashable(part.values))
        parts.append(part.codes)
        error, power = error + part.error, power + part.power
    packed = _packed(parts, weight, target)
    about = Converted(
        *(tensor.name, tensor.shape, tensor.stored, _type(target), packed.nbytes, error, power, error == 0),
        digest.hexdigest(),
    )
    return about, packed


def _zero_points_serve(weight: PackedWeight, form: WrittenForm) -> bool:
    zero_points = weight.zero_points()
    return zero_points is None or int(zero_points.min()) >= form.lowest_zero_point(weight.scheme.weight)


def _refusal(tensor: SourceTensor, reason: str) -> UnsupportedError:
    return UnsupportedError(f"{tensor.name} ({tensor.stored}) would lose something; nothing was written", [reason])


def _holders(scheme: LinearScheme) -> list[str]:
    return [name for name, make in WRITTEN_FORMS.items() if make("").held(scheme) is not None]


def _reason(source: LinearScheme | None, target: LinearScheme) -> str:
    if source is None:
        return f"rounding to {target.weight.element} changes its numbers"
    return "its scales or zero points cannot be stored"


def _type(scheme: LinearScheme) -> str:
    return f"{scheme.weight.element} in {scheme.weight.granularity}s"


def _as_it_is(
    weight: PackedWeight, tensor: SourceTensor, pool: ThreadPoolExecutor, threads: int
) -> tuple[Converted, PackedWeight]:
    digest, power = hashlib.sha256(), 0.0

    def one(bounds: tuple[int, int]) -> Array:
        return values_of(rows_of(weight, *bounds))

    for values in some_at_once(pool, one, row_slices(weight), threads + 1):
        digest.update(hashable(values))
        power += squares(values)
    made = Converted(
        *(tensor.name, tensor.shape, tensor.stored, _type(weight.scheme), weight.nbytes, 0.0, power, True),
        digest.hexdigest(),
    )
    return made, weight


def _slicer(weight: Weight, choice: Choice, form: WrittenForm) -> Callable[[tuple[int, int]], _Part]:
    """What makes a part of these rows."""
    target, order = choice.scheme.weight, None
    lowest = form.lowest_zero_point(target)
    if choice.held is not None and choice.held.sorted_columns:
        assert isinstance(weight, PackedWeight)
        order = np.argsort(weight.arrays[COLUMN_ORDER])

    def one(bounds: tuple[int, int]) -> _Part:
        piece = rows_of(weight, *bounds)
        stored = piece.as_stored() if order is not None and isinstance(piece, PackedWeight) else piece
        values = values_of(stored)
        if choice.held is not None and isinstance(stored, PackedWeight):
            codes, fits = _carried(stored, target, lowest)
            if not fits.all():
                codes = merged(round_weight(values, target, lowest), codes, fits, target)
        else:
            codes = round_weight(values, target, lowest)
        after = dequantize(codes[0], target, codes[1], codes[2])
        same = np.array_equal(after, values)
        after -= values
        shown = values if order is None else np.ascontiguousarray(values[:, order])
        return _Part(codes, shown, 0.0 if same else squares(after), squares(values))

    return one


def _carried(piece: PackedWeight, target: Scheme, lowest: int) -> tuple[Codes, Array]:
    """The piece's own codes under the target's scales and zero points, and for each of these whether all is held."""
    source, shape = piece.scheme.weight, piece.shape
    wanted = regrouped(piece.scales(), source, target, shape)
    scales = round_scale(wanted, target)
    off = np.abs(scales.astype(np.float32) - wanted)
    fits = off <= SCALE_TOLERANCE * np.abs(wanted)
    if not has_whole_numbers(target):
        return (piece.codes(), scales, None), fits
    numbers, zero_points = piece.codes().astype(np.int16), piece.zero_points()
    if zero_points is not None:
        numbers -= per_weight(zero_points.astype(np.int16), source, shape)
    groups = numbers.reshape(shape[0], scales.shape[1], -1)
    low, high = groups.min(axis=2), groups.max(axis=2)
    smallest, largest = int(target.numbers.smallest), int(target.numbers.largest)
    zero = np.zeros(low.shape, np.int16)
    if not target.symmetric:
        if zero_points is not None and source.bits == target.bits:  # the very codes, where that is allowed
            zero = regrouped(zero_points, source, target, shape).astype(np.int16)
        inside = (zero >= lowest) & (low + zero >= smallest) & (high + zero <= largest)
        zero = np.where(inside, zero, np.clip(smallest - low, lowest, largest)).astype(np.int16)
    fits = fits & (low + zero >= smallest) & (high + zero <= largest)
    codes = np.clip(groups + zero[:, :, None], smallest, largest).astype(np.int8).reshape(shape)
    return (codes, scales, None if target.symmetric else zero.astype(np.int8)), fits


def _packed(parts: list[Codes], weight: Weight, target: LinearScheme) -> PackedWeight:
    codes, scales = (np.concatenate([part[at] for part in parts]) for at in (0, 1))
    zero_points = None if parts[0][2] is None else np.concatenate([part[2] for part in parts])
    packed = pack(codes, scales, zero_points, replace(target, sorted_columns=False))
    kept = {}
    if isinstance(weight, PackedWeight):
        names = [COLUMN_ORDER] if target.sorted_columns else []
        names += [name for name in weight.arrays if name.startswith("input_") and target.input == weight.scheme.input]
        kept = {name: weight.arrays[name] for name in names}
    return replace(packed, scheme=target, arrays={**packed.arrays, **kept})
