# SPDX-License-Identifier: Apache-2.0
"""The table of OpCases: one op each, as a small Program that every backend can execute through its door.

tests/ops compares backends on it, bench/ops.py times it, and the support matrix asks ``supports`` about it. A case's
activations come from an embedding table (token i reads row i), so no backend needs a side entrance.
"""

import itertools
import zlib
from dataclasses import dataclass
from typing import Any, Literal, get_args

import ml_dtypes
import numpy as np

from linnet.backends.interface import Batch, KVCache, Limits, Policy
from linnet.program import attributes as a
from linnet.program.program import Op, PagedState, Program, Segment, Value, Weight, WeightRef
from linnet.program.traverse import boundary
from linnet.schemes.packed_weight import PackedWeight, quantize_weight
from linnet.schemes.presets import parse_scheme
from linnet.schemes.scheme import DenseType, LinearScheme

Array = np.ndarray[Any, np.dtype[Any]]
Kind = Literal["linear", "norm", "rope", "gate", "attention"]
Inputs = Literal["normal", "heavy"]

DENSE_DTYPES: dict[str, Any] = {"fp32": np.float32, "bf16": ml_dtypes.bfloat16, "fp16": np.float16}
BLOCK_SIZE = 16
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
class OpCase:
    """One op on ``rows`` tokens. ``scheme``: a preset name (W4A16-g32) or a dense type; linears only.

    ``columns`` is the width of the input (per head times heads), ``outputs`` that of a linear's result. ``heavy``
    inputs have a few columns a hundred times larger, as trained models have.
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

    @property
    def name(self) -> str:
        """Unique within the table."""
        size = f"{self.outputs}x{self.columns}" if self.kind == "linear" else str(self.columns)
        kind = self.kind if self.attributes is None else f"{self.kind}-{_digest(repr(self.attributes)):08x}"
        scheme = f"-{self.scheme}" if self.kind == "linear" else ""
        heavy = "-heavy" if self.inputs == "heavy" else ""
        kv = "" if self.kv_cache == "auto" else f"-kv_{self.kv_cache}"
        return f"{kind}{scheme}-{self.policy}-{size}-m{self.rows}{kv}{heavy}"

    @property
    def weight_type(self) -> DenseType | LinearScheme:
        """How the weight is stored."""
        return self.scheme if self.scheme in DENSE_DTYPES else parse_scheme(self.scheme).linear  # type: ignore[return-value]

    def limits(self) -> Limits:
        """Bounds an Executable of this case needs."""
        return Limits(self.rows, 1, self.rows, BLOCK_SIZE, -(-self.rows // BLOCK_SIZE))

    def batch(self) -> Batch:
        """One sequence of ``rows`` tokens whose ids are their positions."""
        rows = np.arange(self.rows, dtype=np.int32)
        blocks = np.arange(-(-self.rows // BLOCK_SIZE), dtype=np.int32)
        lengths = np.array([self.rows], np.int32)
        return Batch(rows, rows, rows, np.array([0, self.rows], np.int32), lengths, blocks[None].copy(), rows)


def _digest(text: str) -> int:
    return zlib.crc32(text.encode())


class CaseSource:
    """The Program of a case and its weights, made from a seed that is the case's name."""

    def __init__(self, case: OpCase) -> None:
        self.case = case
        self.program = build(case)
        self._declared = {weight.ref.checkpoint_name: weight for weight in self.program.weights}
        self._made: dict[str, Array | PackedWeight] = {}

    def weight(self, ref: WeightRef) -> Array | PackedWeight:
        """See backends.interface.Source."""
        name = ref.checkpoint_name
        if name not in self._made:
            self._made[name] = self._make(self._declared[name])
        return self._made[name]

    def _make(self, weight: Weight) -> Array | PackedWeight:
        random = np.random.default_rng([_digest(self.case.name), _digest(weight.name)])
        values = random.standard_normal(weight.shape, dtype=np.float32)
        if weight.name.startswith("table"):
            if self.case.inputs == "heavy":
                values[:, random.choice(weight.shape[1], max(1, weight.shape[1] // 128), replace=False)] *= 100
            return values
        if weight.name == "gain":
            return 1 + values / 10
        values /= np.sqrt(self.case.columns).astype(np.float32)
        if isinstance(weight.dtype, LinearScheme):
            return quantize_weight(values, weight.dtype)
        return values.astype(DENSE_DTYPES[weight.dtype])


def build(case: OpCase) -> Program:
    """Embeddings for the inputs, then the op under test (and, for attention, the kv_write it reads)."""
    weights: list[Weight] = []
    ops: list[Op] = []
    values: list[Value] = []

    def embed(name: str, width: int) -> str:
        table = f"table.{name}"
        weights.append(Weight(table, WeightRef(table), (case.rows, width), "fp32"))
        values.append(Value(name, ("tokens", width), "fp32"))
        ops.append(Op("embed", name, ("token_ids",), (name,), a.Embed(), (table,)))
        return name

    x = embed("x", case.columns)
    inputs, used, states, width = (x,), (), (), case.columns
    attributes: Any = case.attributes
    if case.kind == "linear":
        attributes, used, width = a.Linear(), ("weight", "bias"), case.outputs
        weights.append(Weight("weight", WeightRef("weight"), (case.outputs, case.columns), case.weight_type))
        weights.append(Weight("bias", WeightRef("bias"), (case.outputs,), "fp32"))
    elif case.kind == "norm":
        used = ("gain",)
        weights.append(Weight("gain", WeightRef("gain"), (attributes.size,), "fp32"))
    elif case.kind == "rope":
        inputs = (x, "positions")
    elif case.kind == "gate":
        inputs = (x, embed("up", case.columns))
    else:
        kv_width = attributes.kv_heads * attributes.head_size
        key, value = embed("key", kv_width), embed("value", kv_width)
        states = ("kv",)
        ops.append(Op("kv_write", "kv_write", (key, value, "kv_slots"), (), a.KVWrite(), states=states))
        inputs = (x, "positions", "query_start", "context_lengths", "block_tables")
    values.append(Value(RESULT, ("tokens", width), "fp32"))
    ops.append(Op(case.kind, RESULT, inputs, (RESULT,), attributes, used, states))
    paged = tuple(PagedState(n, 0, attributes.kv_heads, attributes.head_size, attributes.head_size) for n in states)
    given = [value.name for value in _INPUTS]
    segments = tuple(
        Segment(kind, kind, start, stop, *boundary(tuple(ops), start, stop, given, (RESULT,)))  # type: ignore[arg-type]
        for kind, start, stop in (("embed", 0, 1), ("head", 1, len(ops)))
    )
    return Program(_INPUTS, tuple(values), tuple(weights), paged, tuple(ops), segments, (RESULT,))


FAST_SCHEMES = (
    "W4A16", "W4A16-g32", "W4A16-g64", "W4A16-g32-asym", "W4A16-channel", "W8A16", "W8A16-g128", "W8A8", "W4A8",
    "W2A16", "W3A16", "bf16", "fp16",
)  # fmt: skip
EXACT_SCHEMES = ("fp32", "bf16", "fp16", "W4A16-g32", "W4A16-asym", "W8A16", "W3A16", "W2A16", "FP8", "NF4")

_ROPE = tuple(10000.0 ** (-i / 32) for i in range(32))


def conformance_cases() -> tuple[OpCase, ...]:
    """What every backend must agree on; small, but with k = 2048 and 8192, odd sizes and heavy-tailed inputs."""
    cases = [OpCase("linear", 5, 256, 48, scheme, "fast") for scheme in FAST_SCHEMES]
    cases += [OpCase("linear", 5, 256, 48, scheme, "exact") for scheme in EXACT_SCHEMES]
    for scheme in ("W4A16", "W4A16-g32", "W8A8", "W8A16", "bf16"):
        cases += [OpCase("linear", 2, columns, 40, scheme, "fast", "heavy") for columns in (2048, 8192)]
    for scheme, columns in (
        ("W4A16-channel", 704), ("W4A16-g32", 704), ("W4A16-g64", 704), ("W8A16", 172), ("W8A8", 172), ("W8A8", 899),
        ("W4A16", 896), ("W2A16", 96), ("W3A16", 96), ("bf16", 171), ("fp16", 171), ("W4A16-g8", 200),
    ):  # fmt: skip
        cases += [OpCase("linear", rows, columns, 37, scheme, "fast") for rows in (1, 11)]
    cases += [OpCase("linear", 3, 171, 37, "fp32", "exact"), OpCase("linear", 3, 8192, 8, "W4A16", "exact", "heavy")]
    for attributes in (a.Norm("rms", 64, 1e-6), a.Norm("rms", 192, 1e-5, 1.0), a.Norm("layer", 192, 1e-5)):
        cases.append(OpCase("norm", 3, 192, policy="exact", inputs="heavy", attributes=attributes))
    for style in ("half", "interleaved"):
        cases.append(OpCase("rope", 21, 256, policy="exact", attributes=a.Rope(128, 64, style, _ROPE)))  # type: ignore[arg-type]
    for activation in ("silu", "gelu", "gelu_tanh", "relu"):
        cases.append(OpCase("gate", 3, 100, policy="exact", attributes=a.Gate(activation)))  # type: ignore[arg-type]
    for policy in ("exact", "fast"):
        for attention in (
            a.Attention(4, 2, 64, 0.125),
            a.Attention(4, 4, 40, 0.1, window=19),
            a.Attention(4, 1, 32, 0.2, softcap=5.0),
            a.Attention(4, 2, 24, 0.25, alibi_slopes=(0.5, 0.25, 0.125, 0.0625)),
        ):
            width = attention.heads * attention.head_size
            cases.append(OpCase("attention", 70, width, policy=policy, attributes=attention))  # type: ignore[arg-type]
    return (*cases, *_kv_cases())


def _kv_cases() -> list[OpCase]:
    """Every KV type under both policies; several partitions of keys; groups of heads from 1 to 9; odd head sizes."""
    shapes = (
        a.Attention(4, 2, 64, 0.125),
        a.Attention(7, 1, 40, 0.16, window=19),
        a.Attention(8, 1, 32, 0.2, softcap=5.0),
        a.Attention(4, 4, 24, 0.2, alibi_slopes=(0.5, 0.25, 0.125, 0.0625)),
    )
    cases = []
    for policy, kv_cache in itertools.product(get_args(Policy), get_args(KVCache)[1:]):
        for attention in shapes:
            width = attention.heads * attention.head_size
            for inputs in get_args(Inputs):
                cases.append(OpCase("attention", 70, width, 0, "", policy, inputs, attention, kv_cache))
        cases.append(OpCase("attention", 600, 640, 0, "", policy, "normal", a.Attention(16, 4, 40, 0.15), kv_cache))
    for heads, kv_heads, size in ((9, 9, 64), (6, 3, 128), (14, 2, 64), (18, 2, 31)):
        attributes = a.Attention(heads, kv_heads, size, size**-0.5, window=300)
        cases.append(OpCase("attention", 530, heads * size, policy="fast", attributes=attributes))
    return cases


def speed_cases() -> tuple[OpCase, ...]:
    """The matrices of a 1B model (Llama-3.2-1B's shape) from one row to a prefill chunk."""
    cases = []
    for scheme in ("W4A16", "W4A16-g32", "W8A16", "W8A8", "bf16"):
        for rows in (1, 4, 16, 512):
            cases.append(OpCase("linear", rows, 2048, 8192, scheme))
        cases.append(OpCase("linear", 1, 8192, 2048, scheme))
    cases += [OpCase("linear", rows, 2048, 8192, scheme, "exact") for scheme in ("fp32", "W4A16") for rows in (1, 64)]
    cases += [OpCase("linear", rows, 2048, 8192, scheme) for scheme in ("W2A16", "W3A16") for rows in (1, 4, 64)]
    cases += [OpCase("linear", rows, 2048, 8192, scheme) for scheme in ("NF4", "FP8") for rows in (1, 4, 16, 64, 512)]
    return tuple(cases)
