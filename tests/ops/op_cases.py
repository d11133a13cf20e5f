# SPDX-License-Identifier: Apache-2.0
"""An OpCase: one op as a small Program that every backend can execute through its door. Tables: ``op_case_tables``.

tests/ops compares backends on them, bench/ops.py times them. A case's activations come from an embedding table (token i
reads row i), so no backend needs a side entrance.
"""

import zlib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, Literal

import ml_dtypes
import numpy as np

from linnet.backends.interface import Batch, KVCache, Limits, Policy
from linnet.program import attributes as a
from linnet.program.program import Op, PagedState, Program, Segment, Value, Weight, WeightRef
from linnet.program.traverse import boundaries
from linnet.schemes.packed_weight import PackedWeight, pack_learned, plain_scheme, quantize_weight, without_zeros
from linnet.schemes.presets import parse_scheme
from linnet.schemes.scheme import DenseType, LinearScheme
from linnet.schemes.sparsity import TWO_OF_FOUR

Array = np.ndarray[Any, np.dtype[Any]]
Kind = Literal[
    "embed", "norm", "linear", "logits", "add", "scale", "softcap", "cast", "quantise", "rope", "kv_write", "attention",
    "gate", "gather", "hadamard",
]  # fmt: skip
"""``cast``, ``quantise``: what the policy puts in front of a linear of ``scheme``."""
Inputs = Literal["normal", "heavy"]

SPARSE = f"-{TWO_OF_FOUR.name}"
"""Behind a scheme: two of every four columns are zero and left out."""
DENSE_DTYPES: dict[str, Any] = {"fp32": np.float32, "bf16": ml_dtypes.bfloat16, "fp16": np.float16}
BLOCK_SIZE = 16
FILL_TOKENS = 256
"""Tokens of a step that stores the context of a case."""
TABLE_ROWS = 64
"""Different rows of input that a long context repeats."""
RESULT = "result"
"""Name of the value a case is about."""

_INPUTS = (
    Value("token_ids", ("tokens",), "int32"),
    Value("positions", ("tokens",), "int32"),
    Value("kv_slots", ("tokens",), "int32"),
    Value("query_start", ("sequences_plus_one",), "int32"),
    Value("context_lengths", ("sequences",), "int32"),
    Value("block_tables", ("sequences", "blocks"), "int32"),
    Value("output_rows", ("outputs",), "int32"),
)


@dataclass(frozen=True)
class Steps:
    """The steps of a case: ``rows`` tokens, split over ``sequences``, each behind ``context`` tokens stored before."""

    rows: int
    context: int = 0
    sequences: int = 1

    @property
    def suffix(self) -> str:
        """For names: ``-c511-s16``."""
        return (f"-c{self.context}" if self.context else "") + (f"-s{self.sequences}" if self.sequences > 1 else "")

    @property
    def blocks(self) -> int:
        """Of one sequence."""
        return -(-(self.context + self.rows // self.sequences) // BLOCK_SIZE)

    @property
    def num_blocks(self) -> int:
        """Of all sequences."""
        return self.sequences * self.blocks

    def limits(self) -> Limits:
        """Bounds an Executable needs."""
        tokens = max(self.rows, min(self.context, FILL_TOKENS))
        return Limits(tokens, self.sequences, self.rows, BLOCK_SIZE, self.blocks)

    def filling(self, vocabulary: int) -> Iterator[Batch]:
        """Steps that store the context, one sequence at a time; ids repeat all of ``vocabulary``."""
        for sequence in range(self.sequences):
            for start in range(0, self.context, FILL_TOKENS):
                tokens = min(FILL_TOKENS, self.context - start)
                yield self._batch([sequence], start, tokens, vocabulary)

    def batch(self, vocabulary: int) -> Batch:
        """The step the case is about; its logits are those of every row."""
        each = self.rows // self.sequences
        return self._batch(list(range(self.sequences)), self.context, each, vocabulary, self.rows)

    def _batch(self, sequences: list[int], start: int, each: int, vocabulary: int, outputs: int = 1) -> Batch:
        count = len(sequences)
        positions = np.tile(np.arange(start, start + each, dtype=np.int32), count)
        tables = np.array([np.arange(self.blocks) + s * self.blocks for s in sequences], np.int32)
        slots = np.repeat(tables[:, 0] * BLOCK_SIZE, each).astype(np.int32) + positions
        ids = (np.arange(count * each) + start) % vocabulary
        return Batch(
            ids.astype(np.int32),
            positions,
            slots,
            np.arange(0, count * each + 1, each, dtype=np.int32),
            np.full(count, start + each, np.int32),
            tables,
            np.arange(outputs, dtype=np.int32),
        )


@dataclass(frozen=True)
class OpCase:
    """One op on ``rows`` tokens. ``scheme``: a preset name (W4A16-g32) or a dense type, and ``SPARSE`` behind it; where
    the op has a weight.

    ``columns`` is the width of the input (per head times heads), ``outputs`` that of a projection's result or the rows
    of an embedding, or the gains of a norm whose runs have their own, the sinks of attention, the rows of a table whose
    first is added. ``heavy`` inputs have a few columns a hundred
    times larger, as trained models have.
    ``context``, ``sequences``: see Steps.
    """

    kind: Kind
    rows: int
    columns: int
    outputs: int = 0
    scheme: str = "fp32"
    policy: Policy = "fast"
    inputs: Inputs = "normal"
    attributes: object | None = None
    kv_cache: KVCache = "auto"
    context: int = 0
    sequences: int = 1

    @property
    def name(self) -> str:
        """Unique within the table."""
        size = f"{self.outputs}x{self.columns}" if self.outputs else str(self.columns)
        kind = self.kind if self.attributes is None else f"{self.kind}-{_digest(repr(self.attributes)):08x}"
        scheme = f"-{self.scheme}" if self.outputs else ""
        heavy = "-heavy" if self.inputs == "heavy" else ""
        kv = "" if self.kv_cache == "auto" else f"-kv_{self.kv_cache}"
        return f"{kind}{scheme}-{self.policy}-{size}-m{self.rows}{self.steps.suffix}{kv}{heavy}"

    @property
    def weight_type(self) -> DenseType | LinearScheme:
        """How the weight is stored."""
        name, sparse = self.scheme.removesuffix(SPARSE), self.scheme.endswith(SPARSE)
        if name in DENSE_DTYPES:
            return plain_scheme(np.dtype(DENSE_DTYPES[name])) if sparse else name  # type: ignore[return-value]
        linear = parse_scheme(name).linear
        return replace(linear, weight=replace(linear.weight, sparsity=TWO_OF_FOUR.name)) if sparse else linear

    @property
    def steps(self) -> Steps:
        """Its steps; ``vocabulary`` of their ids: ``table_rows``."""
        return Steps(self.rows, self.context, self.sequences)

    @property
    def table_rows(self) -> int:
        """How many different input rows there are."""
        return self.outputs if self.kind == "embed" else max(self.rows, TABLE_ROWS if self.context else 1)

    def limits(self) -> Limits:
        """Bounds an Executable of this case needs."""
        return self.steps.limits()

    def batch(self) -> Batch:
        """The step the case is about; without context or other sequences, ids are positions."""
        return self.steps.batch(self.table_rows)


def _digest(text: str) -> int:
    return zlib.crc32(text.encode())


def leave_two_of_four(values: Array) -> None:
    """Make the two least of every four neighbouring columns zero, in place."""
    fours = values.reshape(-1, TWO_OF_FOUR.group)
    np.put_along_axis(fours, np.argsort(np.abs(fours), axis=1)[:, : TWO_OF_FOUR.pruned(4)], 0, axis=1)


class RandomSource:
    """A Program with random weights, made from ``seed`` and their names; its tables hold inputs."""

    def __init__(self, program: Program, seed: str, heavy: bool = False) -> None:
        self.program, self._seed, self._heavy = program, _digest(seed), heavy
        self._declared = {weight.ref.checkpoint_name: weight for weight in program.weights}
        self._made: dict[str, Array | PackedWeight] = {}

    def weight(self, ref: WeightRef) -> Array | PackedWeight:
        """See backends.interface.Source."""
        name = ref.checkpoint_name
        if name not in self._made:
            self._made[name] = self._make(self._declared[name])
        return self._made[name]

    def _make(self, weight: Weight) -> Array | PackedWeight:
        random = np.random.default_rng([self._seed, _digest(weight.name)])
        values = random.standard_normal(weight.shape, dtype=np.float32)
        if weight.name.startswith("table"):
            if self._heavy:
                values[:, random.choice(weight.shape[1], max(1, weight.shape[1] // 128), replace=False)] *= 100
        elif len(weight.shape) == 1 and weight.name != "bias":
            values /= 10
            values += 1
        else:
            values /= np.float32(np.sqrt(weight.shape[-1]))
        if isinstance(weight.dtype, LinearScheme) and weight.dtype.weight.numbers.learned:
            return learned_weight(values, weight.dtype)
        if isinstance(weight.dtype, LinearScheme):
            if weight.dtype.weight.sparsity is not None:
                leave_two_of_four(values)
            if weight.dtype.weight.numbers.plain:
                return without_zeros(values.astype(weight.dtype.weight.numbers.code_type))
            return quantize_weight(values, weight.dtype)
        return values.astype(DENSE_DTYPES[weight.dtype], copy=False)


def learned_weight(values: Array, scheme: LinearScheme) -> PackedWeight:
    """fp32 [rows, columns] -> codes of tables that hold quantiles of their rows: not the best, but as varied."""
    shares = (np.arange(2**scheme.weight.bits) + 0.5) / 2**scheme.weight.bits
    table = np.quantile(values, shares, axis=1).T.astype(ml_dtypes.bfloat16)
    wide = table.astype(np.float32)
    codes = np.zeros(values.shape, np.uint8)
    for entry in range(1, len(shares)):
        codes += values > (wide[:, entry - 1 : entry] + wide[:, entry : entry + 1]) / 2
    return pack_learned(codes, table, scheme)


class CaseSource(RandomSource):
    """The Program of a case and its weights."""

    def __init__(self, case: OpCase) -> None:
        super().__init__(build(case), case.name, case.inputs == "heavy")
        self.case = case


def build(case: OpCase) -> Program:
    """Embeddings for the inputs, then the op under test and what it cannot be without.

    That is a linear behind ``quantise`` and ``cast``, the kv_write in front of attention, the gather beside ``embed``
    and in front of logits.
    """
    weights: list[Weight] = []
    ops: list[Op] = []
    values: list[Value] = []

    def embed(name: str, width: int, dtype: DenseType | LinearScheme = "fp32") -> str:
        table = f"table.{name}"
        weights.append(Weight(table, WeightRef(table), (case.table_rows, width), dtype))
        return op("embed", name, ("token_ids",), a.Embed(), width, (table,))

    def op(
        kind: str, name: str, inputs: tuple[str, ...], attributes: Any, width: int, used: tuple[str, ...] = (),
        states: tuple[str, ...] = (), rows: str = "tokens",
    ) -> str:  # fmt: skip
        values.append(Value(name, (rows, width), "fp32"))
        ops.append(Op(kind, name, inputs, (name,), attributes, used, states))
        return name

    attributes: Any = case.attributes
    paged: tuple[PagedState, ...] = ()
    x = embed("x", case.columns, case.weight_type if case.kind == "embed" else "fp32")
    given = len(ops)
    if case.kind in ("linear", "logits", "quantise", "cast"):
        weights.append(Weight("weight", WeightRef("weight"), (case.outputs, case.columns), case.weight_type))
        weights.append(Weight("bias", WeightRef("bias"), (case.outputs,), "fp32"))
        used = ("weight", "bias")
        if case.kind == "logits":
            rows = op("gather", "rows", (x, "output_rows"), a.Gather(), case.columns, rows="outputs")
            op("logits", RESULT, (rows,), a.Logits(), case.outputs, used, rows="outputs")
        else:
            op("linear", RESULT, (x,), a.Linear(), case.outputs, used)
    elif case.kind in ("attention", "kv_write"):
        kv_width = attributes.kv_heads * attributes.head_size
        key, value = embed("key", kv_width), embed("value", kv_width)
        given = len(ops)
        paged = (PagedState("kv", 0, attributes.kv_heads, attributes.head_size, attributes.head_size),)
        ops.append(Op("kv_write", "kv_write", (key, value, "kv_slots"), (), a.KVWrite(), states=("kv",)))
        inputs = (x, "positions", "query_start", "context_lengths", "block_tables")
        sinks = ("sinks",) if case.outputs else ()
        weights += [Weight(name, WeightRef(name), (case.outputs,), "fp32") for name in sinks]
        op("attention", RESULT, inputs, attributes, case.columns, sinks, states=("kv",))
    elif case.kind == "norm":
        weights.append(Weight("gain", WeightRef("gain"), (case.outputs or attributes.size,), "fp32"))
        op("norm", RESULT, (x,), attributes, case.columns, ("gain",))
    elif case.kind in ("embed", "gather"):
        op("gather", RESULT, (x, "output_rows"), a.Gather(), case.columns, rows="outputs")
    elif case.kind == "rope":
        op("rope", RESULT, (x, "positions"), attributes, case.columns)
    elif case.kind == "add" and case.outputs:
        weights.append(Weight("rows", WeightRef("rows"), (case.outputs, case.columns), "fp32"))
        op("add", RESULT, (x,), a.Add(), case.columns, ("rows",))
    else:
        pair = case.kind in ("gate", "add")
        operands = (x, embed("up", case.columns)) if pair else (x,)
        given = len(ops)
        op(case.kind, RESULT, operands, a.Add() if case.kind == "add" else attributes, case.columns)
    return _program(values, weights, paged, ops, given)


def _program(
    values: list[Value], weights: list[Weight], states: tuple[PagedState, ...], ops: list[Op], given: int
) -> Program:
    """The first ``given`` ops, which make the inputs, are a segment of their own: nothing is fused with them."""
    known = [value.name for value in _INPUTS]
    parts = (("embed", 0, given), ("head", given, len(ops)))
    crossings = boundaries(ops, [(start, stop) for _, start, stop in parts], known, (RESULT,))
    segments = tuple(
        Segment(kind, kind, start, stop, *crossing)  # type: ignore[arg-type]
        for (kind, start, stop), crossing in zip(parts, crossings, strict=True)
    )
    return Program(_INPUTS, tuple(values), tuple(weights), states, tuple(ops), segments, (RESULT,))
