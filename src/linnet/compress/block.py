# SPDX-License-Identifier: Apache-2.0
"""Block: one segment's working set by checkpoint name, and what each of its modules has become: masked, packed.

Transforms and fits change the Block, running derives its weights from it, writing takes from it: so what ran is what is
written. A dense tensor that was changed is rounded at once to the type it is stored in, unless it will be packed.
"""

from collections.abc import Collection, Iterable, Iterator, Mapping

import numpy as np
import torch

from linnet.backends.reference.weights import to_torch
from linnet.errors import UnsupportedError
from linnet.formats.dtypes import NAME_TO_NUMPY
from linnet.models.load import ModelSource
from linnet.program.program import Program, Segment, Weight
from linnet.schemes.packed_weight import PackedWeight


class Block:
    """``to_be_packed``: modules that a fit will give a PackedWeight. Unchanged tensors stay in the mapped source."""

    def __init__(self, segment: Segment, source: ModelSource, to_be_packed: Collection[str] = ()) -> None:
        self._source, self._to_be_packed = source, to_be_packed
        program = source.program
        self._ops = program.ops[segment.start : segment.stop]
        self._weights = _weights_of(program, segment)
        self._changed: dict[str, torch.Tensor] = {}
        self._running: dict[str, torch.Tensor] = {}
        self.packed: dict[str, PackedWeight] = {}
        self.kept: dict[str, torch.Tensor] = {}
        """Module -> bool [rows, columns]: which of its weights were not pruned; the others are zero and stay so."""

    @property
    def names(self) -> tuple[str, ...]:
        """Checkpoint names of the tensors that the segment reads, in the order it does."""
        return tuple(dict.fromkeys(weight.ref.checkpoint_name for weight in self._weights.values()))

    def dense(self, name: str) -> torch.Tensor:
        """A checkpoint tensor as it was before packing, fp32; shared: not to be written to."""
        changed = self._changed.get(name)
        if changed is not None:
            return changed
        whole = next((weight.name for weight in self._readers(name) if weight.ref.rows is None), None)
        if whole in self._running and name.removesuffix(".weight") not in self.packed:
            return self._running[whole]
        return to_torch(self._source.checkpoint.tensor(name))

    def is_exact(self, name: str) -> bool:
        """Whether a change of a dense tensor is kept in fp32."""
        module = name.removesuffix(".weight")
        return module in self._to_be_packed or self._source.checkpoint.info(name).dtype == "fp32"

    def change(self, name: str, values: torch.Tensor) -> None:
        """A transform's new fp32 values of a dense tensor."""
        module = name.removesuffix(".weight")
        assert module not in self.packed, f"{name} is changed after it was packed"
        if module not in self._to_be_packed:
            values = to_torch(self._as_stored(name, values))
        self._changed[name] = values
        self._forget(name)

    def mask(self, module: str, values: torch.Tensor, kept: torch.Tensor) -> None:
        """What a sparsifier made of a module: its new values, zero wherever ``kept`` is not."""
        self.change(f"{module}.weight", values)
        self.kept[module] = kept

    def pack(self, module: str, weight: PackedWeight) -> None:
        """What a fit made of a module: it takes the dense tensor's place. UnsupportedError: a pruned weight is back."""
        kept = self.kept.get(module)
        if kept is not None and weight.dequantize()[~kept.numpy()].any():
            raise UnsupportedError(
                f"{module}: its codes give weights that were pruned other values than zero; after sparsify, quantise "
                "to a scheme that has a zero"
            )
        self.packed[module] = weight
        self._changed.pop(f"{module}.weight", None)
        self._forget(f"{module}.weight")

    def running(self) -> dict[str, torch.Tensor]:
        """Every weight of the segment in fp32 by the program's names, but for tables and heads (see ``table``)."""
        for op in self._ops:
            for name in op.weights:
                if not (op.kind in ("embed", "logits") and name == op.weights[0]) and name not in self._running:
                    self._running[name] = self._weight(self._weights[name])
        return dict(self._running)

    def running_with(self, dense: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """As ``running``, with other fp32 values of some checkpoint tensors, through which gradients flow."""
        found = self.running()
        for name in found:
            ref = self._weights[name].ref
            if ref.checkpoint_name in dense:
                found[name] = _rows_of(dense[ref.checkpoint_name], ref.rows)
        return found

    def compressed(self) -> dict[str, torch.Tensor | PackedWeight]:
        """As ``running``, packed weights with their codes: for a program that rounds activations."""
        found: dict[str, torch.Tensor | PackedWeight] = {**self.running()}
        for name in found:
            ref = self._weights[name].ref
            packed = self.packed.get(ref.checkpoint_name.removesuffix(".weight"))
            if packed is not None:
                found[name] = packed if ref.rows is None else packed.take_rows(ref.rows)
        return found

    def table(self) -> np.ndarray | PackedWeight:
        """The first op's weight as stored: an embedding of which few rows are wanted."""
        name = self._weights[self._ops[0].weights[0]].ref.checkpoint_name
        packed = self.packed.get(name.removesuffix(".weight"))
        return packed if packed is not None else self.stored(name)

    def stored(self, name: str) -> np.ndarray:
        """A dense tensor as it will be written, in the type of the source."""
        changed = self._changed.get(name)
        return self._source.checkpoint.tensor(name) if changed is None else self._as_stored(name, changed)

    def _weight(self, weight: Weight) -> torch.Tensor:
        """The one place that maps the program's weights, with their row ranges, to the Block's tensors."""
        name, rows = weight.ref.checkpoint_name, weight.ref.rows
        packed, changed = self.packed.get(name.removesuffix(".weight")), self._changed.get(name)
        if packed is not None:
            return to_torch((packed if rows is None else packed.take_rows(rows)).dequantize())
        if changed is None:
            stored = self._source.weight(weight.ref)
            assert isinstance(stored, np.ndarray)
            return to_torch(stored)
        return _rows_of(changed, rows)

    def _as_stored(self, name: str, values: torch.Tensor) -> np.ndarray:
        return values.numpy().astype(NAME_TO_NUMPY[self._source.checkpoint.info(name).dtype])

    def _forget(self, name: str) -> None:
        for weight in self._readers(name):
            self._running.pop(weight.name, None)

    def _readers(self, name: str) -> Iterator[Weight]:
        return (weight for weight in self._weights.values() if weight.ref.checkpoint_name == name)


def _rows_of(values: torch.Tensor, rows: Iterable[tuple[int, int]] | None) -> torch.Tensor:
    return values if rows is None else torch.cat([values[start:stop] for start, stop in rows])


def _weights_of(program: Program, segment: Segment) -> dict[str, Weight]:
    """The weights a segment's ops read, in their order."""
    declared = {weight.name: weight for weight in program.weights}
    return {name: declared[name] for op in program.ops[segment.start : segment.stop] for name in op.weights}
