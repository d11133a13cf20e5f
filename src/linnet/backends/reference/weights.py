# SPDX-License-Identifier: Apache-2.0
"""A Program's weights as torch tensors, loaded on demand: dense fp32, or integer codes with their scales."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch

from linnet.backends.interface import Source
from linnet.program.prescribed import keeps_codes
from linnet.program.program import Program, Weight
from linnet.program.traverse import multiplied, plain_ops
from linnet.schemes.scheme import Scheme

if TYPE_CHECKING:
    from linnet.schemes.packed_weight import PackedWeight


@dataclass(frozen=True)
class QuantisedWeight:
    """Integer codes (zero point already subtracted) with one scale, and perhaps one minimum, per row and group."""

    codes: torch.Tensor  # int16 [rows, columns]
    scales: torch.Tensor  # fp32 [rows, groups]
    group_size: int  # columns that share a scale; the whole row if the scheme has no groups
    minimums: torch.Tensor | None = None  # fp32 [rows, groups], subtracted

    def dense(self) -> torch.Tensor:
        """fp32 [rows, columns]; equal to PackedWeight.dequantize."""
        scaled = self.codes.float() * self._wide(self.scales)
        return scaled if self.minimums is None else scaled - self._wide(self.minimums)

    def take_rows(self, ids: torch.Tensor) -> "QuantisedWeight":
        """The rows of these indices."""
        minimums = None if self.minimums is None else self.minimums[ids]
        return QuantisedWeight(self.codes[ids], self.scales[ids], self.group_size, minimums)

    def _wide(self, parameter: torch.Tensor) -> torch.Tensor:
        return parameter.repeat_interleave(self.group_size, dim=1)[:, : self.codes.shape[1]]


LoadedWeight = torch.Tensor | QuantisedWeight


def to_torch(array: np.ndarray) -> torch.Tensor:
    """An fp32 tensor of any dense array (mapped and read-only ones too): a copy in torch's own aligned memory.

    Matrix products may depend in the last bit on how their operands are aligned; torch aligns always alike.
    """
    result = torch.empty(array.shape, dtype=torch.float32)
    result.numpy()[...] = array
    return result


def load_weight(stored: "np.ndarray | PackedWeight", keep_codes: bool) -> LoadedWeight:
    """Dense weights and, unless ``keep_codes``, packed ones become fp32; with it integer codes stay codes."""
    if isinstance(stored, np.ndarray):
        return to_torch(stored)
    scheme = stored.scheme.weight
    if keep_codes and scheme.numbers.learned:
        codes, units = stored.whole_numbers()
        return QuantisedWeight(torch.from_numpy(codes), to_torch(units), stored.shape[1])
    if not keep_codes or not scheme.numbers.integer:
        return to_torch(stored.dequantize())
    rows, columns = stored.shape
    group_size = scheme.columns_per_scale or columns
    whole = torch.from_numpy(stored.codes().astype(np.int16))
    scales = _per_row(to_torch(stored.scales()), rows, scheme.block)
    zero_points = stored.zero_points()
    if zero_points is not None:
        zero = _per_row(torch.from_numpy(zero_points.astype(np.int16)), rows, scheme.block)
        whole = whole - zero.repeat_interleave(group_size, dim=1)[:, :columns]
    minimums = stored.minimums()
    return QuantisedWeight(whole, scales, group_size, None if minimums is None else torch.from_numpy(minimums))


def _per_row(parameter: torch.Tensor, rows: int, block: tuple[int, int] | None) -> torch.Tensor:
    """Scales or zero points of a tensor, its channels, groups or blocks -> [rows, groups]."""
    if block is not None:
        parameter = parameter.repeat_interleave(block[0], dim=0)[:rows]
    return parameter.expand(rows, -1).contiguous()


class WeightTable:
    """Weights of one Program by name. ``overrides`` (a tensor or a PackedWeight per weight name) win over the source.

    ``cache`` keeps what was loaded (an executable); without it every ``get`` reads again (the compression walk, which
    wants one block in memory and passes it as overrides).
    """

    def __init__(
        self,
        program: Program,
        source: Source | None,
        overrides: "Mapping[str, torch.Tensor | PackedWeight] | None" = None,
        cache: bool = False,
    ) -> None:
        self._declared: dict[str, Weight] = {weight.name: weight for weight in program.weights}
        self._source = source
        self._overrides = dict(overrides or {})
        self._cache: dict[str, LoadedWeight] | None = {} if cache else None
        self._with_codes = _weights_of_quantised_inputs(program)
        self._narrow = _weights_of_bf16_inputs(program)

    def get(self, name: str) -> LoadedWeight:
        """The weight as the op that reads it wants it."""
        if self._cache is not None and name in self._cache:
            return self._cache[name]
        override = self._overrides.get(name)
        if isinstance(override, torch.Tensor):
            return override
        if override is None and self._source is None:
            raise KeyError(f"weight {name} was not given and there is no source to read it from")
        stored = override if override is not None else self._source.weight(self._declared[name].ref)  # type: ignore[union-attr]
        loaded = load_weight(stored, name in self._with_codes)
        if (
            name in self._narrow
            and not isinstance(stored, np.ndarray)
            and stored.scheme.weight.numbers.kind == "codebook"
        ):
            assert isinstance(loaded, torch.Tensor)
            loaded = loaded.bfloat16().float()
        shape = tuple(loaded.codes.shape if isinstance(loaded, QuantisedWeight) else loaded.shape)
        if shape != self._declared[name].shape:
            raise ValueError(f"weight {name} has shape {shape}; the program declares {self._declared[name].shape}")
        if self._cache is not None:
            self._cache[name] = loaded
        return loaded

    def dense(self, name: str) -> torch.Tensor:
        """The weight as fp32."""
        loaded = self.get(name)
        return loaded.dense() if isinstance(loaded, QuantisedWeight) else loaded


def _weights_of_quantised_inputs(program: Program) -> frozenset[str]:
    """Weights (first of their op) whose op reads codes of an activation: integer arithmetic needs the weight's too."""
    quantised = {value.name for value in program.values if isinstance(value.dtype, Scheme) and keeps_codes(value.dtype)}
    return frozenset(
        name for op in plain_ops(program) if op.inputs[:1] and op.inputs[0] in quantised for name in multiplied(op)
    )


def _weights_of_bf16_inputs(program: Program) -> frozenset[str]:
    """Weights (first of their op) whose op reads bf16: a codebook's scaled values are rounded to bf16 there."""
    narrow = {value.name for value in program.values if value.dtype == "bf16"}
    return frozenset(
        name for op in plain_ops(program) if op.inputs[:1] and op.inputs[0] in narrow for name in multiplied(op)
    )
