# SPDX-License-Identifier: Apache-2.0
"""Block: one segment's working set by checkpoint name, and what each of its modules has become: masked, packed, a term
of low rank beside that or in its place.

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
from linnet.program.prescribed import INPUT_SCALE
from linnet.program.program import Program, Segment, Weight, WeightRef
from linnet.schemes.packed_weight import PackedWeight
from linnet.schemes.terms import (
    CALM,
    CHOSEN,
    DOWN,
    OUTLIERS,
    SPARSE_COLUMNS,
    SPARSE_VALUES,
    UP,
    LowRank,
    Outliers,
    Sparse,
    Terms,
    calm_order,
    one_hot,
    plain,
)


class Block:
    """``to_be_packed``: modules that a fit will give a PackedWeight. Unchanged tensors stay in the mapped source."""

    def __init__(self, segment: Segment, source: ModelSource, to_be_packed: Collection[str] = ()) -> None:
        self._source, self._to_be_packed = source, to_be_packed
        program = source.program
        self._segment = segment
        self._ops = program.ops[segment.start : segment.stop]
        self._weights = _weights_of(program, segment)
        self._changed: dict[str, torch.Tensor] = {}
        self._running: dict[str, torch.Tensor] = {}
        self.packed: dict[str, PackedWeight] = {}
        self.kept: dict[str, torch.Tensor] = {}
        """Module -> bool [rows, columns]: which of its weights were not pruned; the others are zero and stay so."""
        self.low_rank: dict[str, LowRank] = {}
        self.outliers: dict[str, Outliers] = {}
        self.sparse: dict[str, Sparse] = {}
        self.replaced: set[str] = set()
        """Modules that are their low-rank term and nothing else."""

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

    def add_low_rank(self, module: str, low_rank: LowRank, replaces: bool) -> None:
        """Put a term beside what a module has become, or in its place."""
        self.low_rank[module] = low_rank
        if replaces:
            self.replaced.add(module)
        self._forget(f"{module}.weight")

    def set_outliers(self, module: str, outliers: Outliers) -> None:
        """Put the columns that a module's codes leave out beside them."""
        self.outliers[module] = outliers
        self._forget(f"{module}.weight")

    def set_sparse(self, module: str, sparse: Sparse) -> None:
        """Put what is added to a module's codes beside them."""
        self.sparse[module] = sparse
        self._forget(f"{module}.weight")

    def terms(self) -> dict[str, Terms]:
        """What those modules are the sum of that are not just their weight."""
        return {
            module: Terms(
                module not in self.replaced,
                self.low_rank[module].rank if module in self.low_rank else 0,
                self.outliers[module].columns if module in self.outliers else (),
                self.sparse[module].values.shape[1] if module in self.sparse else 0,
            )
            for module in dict.fromkeys((*self.outliers, *self.sparse, *self.low_rank))
        }

    def term_modules(self, module: str) -> dict[str, np.ndarray | PackedWeight]:
        """The terms beside a module's weight, or in its place, by names relative to it."""
        every = (self.outliers.get(module), self.sparse.get(module), self.low_rank.get(module))
        return {name: stored for term in every if term is not None for name, stored in term.modules().items()}

    def whole(self, module: str) -> torch.Tensor:
        """fp32: what has become of a module's weight, without a term beside it; not to be written to."""
        return self.dense(f"{module}.weight") if module not in self.packed else self._rows(f"{module}.weight", None)

    def running(self) -> dict[str, torch.Tensor]:
        """Every weight of the segment in fp32 by the program's names, but for tables and heads (see ``table``)."""
        for op in self._ops:
            for name in op.weights:
                table = op.inputs == ("token_ids",) or op.kind == "logits"
                if not (table and name == op.weights[0]) and name not in self._running:
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

    def compressed(self, program: Program) -> dict[str, torch.Tensor | PackedWeight]:
        """What this segment of the compressed model's ``program`` reads, by its names: codes as such, terms apart."""
        index = next(at for at, segment in enumerate(program.segments) if segment.name == self._segment.name)
        return {name: self._term(weight) for name, weight in _weights_of(program, program.segments[index]).items()}

    def _term(self, weight: Weight) -> torch.Tensor | PackedWeight:
        """A weight of the compressed model: one term of a linear, or anything else as it runs."""
        name, rows = weight.ref.checkpoint_name, weight.ref.rows
        module = name.removesuffix(".weight")
        for leaf in (DOWN, UP, OUTLIERS, SPARSE_VALUES, SPARSE_COLUMNS):
            if module.endswith(f".{leaf}"):
                stored = self.term_modules(module.removesuffix(f".{leaf}"))[leaf]
                return _rows_of(torch.from_numpy(plain(stored)), rows)
        for leaf, made in ((CHOSEN, one_hot), (CALM, calm_order)):
            if module.endswith(f".{leaf}"):
                of = module.removesuffix(f".{leaf}")
                return torch.from_numpy(made(self.outliers[of].columns, self.packed[of].shape[1]))
        if module.endswith(f".{INPUT_SCALE}"):
            return to_torch(self.packed[module.removesuffix(f".{INPUT_SCALE}")].arrays[INPUT_SCALE])
        packed = self.packed.get(module)
        if packed is not None:
            return packed if rows is None else packed.take_rows(rows)
        return self._rows(name, rows)

    def table(self) -> np.ndarray | PackedWeight:
        """The first op's weight as stored: an embedding of which few rows are wanted."""
        name = self._weights[self._ops[0].weights[0]].ref.checkpoint_name
        packed = self.packed.get(name.removesuffix(".weight"))
        return packed if packed is not None else self.stored(name)

    def dense_table(self) -> np.ndarray:
        """The same before it was packed."""
        return self.stored(self._weights[self._ops[0].weights[0]].ref.checkpoint_name)

    def stored(self, name: str) -> np.ndarray:
        """A dense tensor as it will be written, in the type of the source."""
        changed = self._changed.get(name)
        return self._source.checkpoint.tensor(name) if changed is None else self._as_stored(name, changed)

    def unpacked(self, name: str) -> np.ndarray:
        """A tensor as it was before packing, in a type that holds it exactly: of a large one, no copy in fp32."""
        changed = self._changed.get(name)
        return self._source.checkpoint.tensor(name) if changed is None else changed.numpy()

    def _weight(self, weight: Weight) -> torch.Tensor:
        """The one place that maps the program's weights, with their row ranges, to the Block's tensors."""
        name, rows = weight.ref.checkpoint_name, weight.ref.rows
        module = name.removesuffix(".weight")
        term = self.low_rank.get(module)
        if term is None:
            return self._rows(name, rows)
        product = torch.from_numpy((term if rows is None else term.take_rows(rows)).product())
        return product if module in self.replaced else product.add_(self._rows(name, rows))

    def _rows(self, name: str, rows: tuple[tuple[int, int], ...] | None) -> torch.Tensor:
        """fp32: a tensor, or rows of it, without a term beside it."""
        module = name.removesuffix(".weight")
        packed, changed, outliers = self.packed.get(module), self._changed.get(name), self.outliers.get(module)
        if packed is not None:
            values = to_torch((packed if rows is None else packed.take_rows(rows)).dequantize())
            if outliers is not None:
                values[:, list(outliers.columns)] = _rows_of(to_torch(outliers.weight), rows)
            if module in self.sparse:
                self.sparse[module].add_to(values.numpy(), rows)
            return values
        if changed is not None:
            return _rows_of(changed, rows)
        stored = self._source.weight(WeightRef(name, rows))
        assert isinstance(stored, np.ndarray)
        return to_torch(stored)

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
