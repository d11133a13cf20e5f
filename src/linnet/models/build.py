# SPDX-License-Identifier: Apache-2.0
"""build_program: ArchSpec + how each weight is stored -> Program. Pure; names are stable and dotted.

A block i writes ``layers.i.attention.*`` (or ``state_space``) then ``layers.i.mlp.*``; its boundary values are the
residual streams before and after it. Rounding is not decided here: see ``program.choose_numerics``.
"""

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType

from linnet.models.attention import attention
from linnet.models.feed_forward import feed_forward
from linnet.models.spec import (
    ArchSpec,
    LayerSpec,
    NormSpec,
    PositionTable,
    Projection,
    RopeSpec,
    RowRanges,
    StateSpaceSpec,
)
from linnet.models.state_space import STATE_SLOTS, state_space
from linnet.program import attributes as a
from linnet.program.program import Op, PagedState, Program, Segment, SlotState, Value, Weight, WeightRef
from linnet.program.traverse import boundaries
from linnet.schemes.scheme import DenseType, LinearScheme, Scheme
from linnet.schemes.terms import CALM, CHOSEN, DOWN, OUTLIERS, PLAIN, SPARSE_COLUMNS, SPARSE_VALUES, UP, Terms

WeightTypes = Callable[[str], DenseType | LinearScheme]
"""Checkpoint tensor name -> how it is stored."""
_NO_TERMS: Mapping[str, Terms] = MappingProxyType({})
_NO_ROTATIONS: Mapping[str, int] = MappingProxyType({})

INPUTS: tuple[Value, ...] = (
    Value("token_ids", ("tokens",), "int32"),
    Value("positions", ("tokens",), "int32"),
    Value("kv_slots", ("tokens",), "int32"),
    Value("query_start", ("sequences_plus_one",), "int32"),
    Value("context_lengths", ("sequences",), "int32"),
    Value("block_tables", ("sequences", "blocks"), "int32"),
    Value("output_rows", ("outputs",), "int32"),
)


class Builder:
    """Collects ops, values and weights in order; every method returns the name of the value it wrote."""

    def __init__(
        self,
        weight_types: WeightTypes,
        kv_types: Sequence[DenseType | Scheme] | None,
        terms: Mapping[str, Terms],
        rotations: Mapping[str, int],
        groups: Mapping[int | None, int],
    ) -> None:
        self.weight_types, self.kv_types, self.terms, self.rotations = weight_types, kv_types, terms, rotations
        self.groups = groups
        self.ops: list[Op] = []
        self.normed: dict[tuple[str, NormSpec], str] = {}
        self.values: list[Value] = []
        self.weights: dict[str, Weight] = {}
        self.states: list[PagedState] = []
        self.slot_states: list[SlotState] = []

    def weight(self, name: str, tensor: str, shape: tuple[int, ...], rows: RowRanges | None = None) -> str:
        """Declare a weight once; the tied head declares the embedding a second time and gets the same one."""
        wanted = Weight(name, WeightRef(tensor, rows), shape, self.weight_types(tensor))
        if self.weights.setdefault(name, wanted) != wanted:
            raise ValueError(f"weight {name} is declared twice with different contents")
        return name

    def op(
        self,
        kind: str,
        name: str,
        inputs: tuple[str, ...],
        attributes: object,
        width: int,
        weights: tuple[str, ...] = (),
        states: tuple[str, ...] = (),
        rows: str = "tokens",
        each: int | None = None,
    ) -> str:
        """``each``: the value has so many rows for every token."""
        self.values.append(Value(name, (rows, width) if each is None else (rows, each, width), "fp32"))
        self.ops.append(Op(kind, name, inputs, (name,), attributes, weights, states))
        return name

    def pair(
        self,
        kind: str,
        name: str,
        inputs: tuple[str, ...],
        attributes: object,
        outputs: tuple[str, str],
        width: int,
        weights: tuple[str, ...] = (),
    ) -> tuple[str, str]:
        """An op that writes whole numbers and, beside them, fp32."""
        self.values += [Value(outputs[0], ("tokens", width), "int32"), Value(outputs[1], ("tokens", width), "fp32")]
        self.ops.append(Op(kind, name, inputs, outputs, attributes, weights))
        return outputs

    def norm(
        self,
        name: str,
        x: str,
        spec: NormSpec,
        width: int,
        layer: int = 0,
        size: int | None = None,
        rows: str = "tokens",
    ) -> str:
        """Normalise runs of ``size`` elements (all of the row by default)."""
        size = size or width
        module = spec.module.format(layer=layer)
        gains = (width // size, size) if spec.by_run else (width if spec.apart else size,)
        weights = [self.weight(f"{name}.weight", f"{module}.weight", gains)]
        if spec.bias:
            weights.append(self.weight(f"{name}.bias", f"{module}.bias", gains))
        attributes = a.Norm(spec.flavour, size, spec.epsilon, spec.offset)
        return self.op("norm", name, (x,), attributes, width, tuple(weights), rows=rows)

    def before(self, name: str, x: str, spec: NormSpec | None, width: int, layer: int) -> str:
        """What a half of a block reads of the stream: normalised, once if both halves have the same norm, or as it
        is."""
        if spec is None:
            return x
        if (x, spec) not in self.normed:
            self.normed[x, spec] = self.norm(name, x, spec, width, layer)
        return self.normed[x, spec]

    def after(
        self, here: str, output: str, post_norm: NormSpec | None, multiplier: float | None, width: int, layer: int
    ) -> str:
        """What a half of a block adds to the stream, of what its last linear made."""
        if post_norm is not None:
            output = self.norm(f"{here}.post_norm", output, post_norm, width, layer)
        if multiplier is not None:
            output = self.op("scale", f"{here}.scaled", (output,), a.Scale(multiplier), width)
        return output

    def linear(self, name: str, x: str, projection: Projection, layer: int) -> str:
        return self.linears(x, layer, {name: projection})[0]

    def linears(self, x: str, layer: int, projections: Mapping[str, Projection]) -> tuple[str, ...]:
        """Several linears of one value, by name. What reads the value itself comes first, so that it can be fused; then
        what low-rank terms make of it, and the sums. All of it is made of the rotated value where there is one."""
        parts: dict[str, list[str]] = {name: [] for name in projections}
        narrow: dict[str, str] = {}
        given = self._rotated_inputs(x, layer, projections)
        split: dict[tuple[str, tuple[int, ...]], tuple[str, str]] = {}
        for name, projection in projections.items():
            terms = self._terms_of(projection, layer)
            key = given[name], terms.outliers
            if key not in split:
                count = len(terms.outliers)
                split[key] = self._split(name, given[name], projection, layer, count) if count else (given[name], "")
            if terms.whole:
                shown = name if terms.plain else f"{name}.whole"
                parts[name].append(self._whole(shown, name, split[key][0], projection, layer))
        for name, projection in projections.items():
            rank, module = self._terms_of(projection, layer).rank, projection.module.format(layer=layer)
            if rank and module not in narrow:  # parts of a fused tensor share it
                down = self.weight(f"{name}.down.weight", f"{module}.{DOWN}.weight", (rank, projection.columns))
                narrow[module] = self.op("linear", f"{name}.down", (given[name],), a.Linear(), rank, (down,))
        for name, projection in projections.items():
            terms, module = self._terms_of(projection, layer), projection.module.format(layer=layer)
            if terms.rank:
                shape = (projection.outputs, terms.rank)
                weights = [self.weight(f"{name}.up.weight", f"{module}.{UP}.weight", shape, projection.rows)]
                if projection.bias and not terms.whole:
                    weights.append(self.bias(name, projection, layer))
                shown = f"{name}.up" if terms.whole else name
                made = self.op("linear", shown, (narrow[module],), a.Linear(), projection.outputs, tuple(weights))
                parts[name].append(made)
        for name, projection in projections.items():
            outliers, module = self._terms_of(projection, layer).outliers, projection.module.format(layer=layer)
            if outliers:
                shape = (projection.outputs, len(outliers))
                weight = self.weight(f"{name}.outliers.weight", f"{module}.{OUTLIERS}.weight", shape, projection.rows)
                inputs = (split[given[name], outliers][1],)
                made = self.op("linear", f"{name}.outliers", inputs, a.Linear(), projection.outputs, (weight,))
                parts[name].append(made)
        for name, projection in projections.items():
            if self._terms_of(projection, layer).sparse:
                parts[name].append(self._sparse(name, given[name], projection, layer))
        return tuple(self._sum(name, own, projections[name].outputs) for name, own in parts.items())

    def _rotated_inputs(self, x: str, layer: int, projections: Mapping[str, Projection]) -> dict[str, str]:
        """What each linear multiplies, by its name: the value, or the value rotated; linears share what is alike."""
        made: dict[int | None, str] = {None: x}
        found: dict[str, str] = {}
        for name, projection in projections.items():
            size = self.rotations.get(projection.module.format(layer=layer))
            if size not in made:
                made[size] = self.rotated(f"{name}.rotated", x, size, projection.columns)
            found[name] = made[size]
        return found

    def rotated(self, name: str, x: str, size: int | None, width: int) -> str:
        """A value in runs of ``size`` times Hadamard's matrix; as it is without a size."""
        return x if size is None else self.op("hadamard", name, (x,), a.Hadamard(size), width)

    def _split(self, name: str, x: str, projection: Projection, layer: int, count: int) -> tuple[str, str]:
        """A linear's input without its outliers, and they alone. Linears of the same outliers share both."""
        module, width = projection.module.format(layer=layer), projection.columns
        chosen = Weight(f"{name}.{CHOSEN}", WeightRef(f"{module}.{CHOSEN}"), (count, width), "fp32")
        calm = Weight(f"{name}.{CALM}", WeightRef(f"{module}.{CALM}"), (width,), "int32")
        self.weights |= {weight.name: weight for weight in (chosen, calm)}
        rest = self.op("order_columns", f"{name}.calm", (x,), a.OrderColumns(), width, (calm.name,))
        return rest, self.op("linear", f"{name}.chosen", (x,), a.Linear(), count, (chosen.name,))

    def _sparse(self, name: str, x: str, projection: Projection, layer: int) -> str:
        """What the sparse term of a linear adds."""
        module = projection.module.format(layer=layer)
        shape = (projection.outputs, self._terms_of(projection, layer).sparse)
        values = self.weight(f"{name}.sparse.values", f"{module}.{SPARSE_VALUES}.weight", shape, projection.rows)
        place = WeightRef(f"{module}.{SPARSE_COLUMNS}.weight", projection.rows)
        columns = Weight(f"{name}.sparse.columns", place, shape, "int32")
        self.weights[columns.name] = columns
        weights = (values, columns.name)
        return self.op("sparse_linear", f"{name}.sparse", (x,), a.SparseLinear(), projection.outputs, weights)

    def _sum(self, name: str, terms: list[str], width: int) -> str:
        """The terms added from left to right; the last sum has the linear's name."""
        made = terms[0]
        for place, term in enumerate(terms[1:], start=2):
            shown = name if place == len(terms) else f"{name}.sum"
            made = self.op("add", shown, (made, term), a.Add(), width)
        return made

    def _terms_of(self, projection: Projection, layer: int) -> Terms:
        return self.terms.get(projection.module.format(layer=layer), PLAIN)

    def _whole(self, shown: str, name: str, x: str, projection: Projection, layer: int) -> str:
        module = projection.module.format(layer=layer)
        shape = (projection.outputs, projection.columns)
        weights = [self.weight(f"{name}.weight", f"{module}.weight", shape, projection.rows)]
        if projection.bias:
            weights.append(self.bias(name, projection, layer))
        return self.op("linear", shown, (x,), a.Linear(), projection.outputs, tuple(weights))

    def bias(self, name: str, projection: Projection, layer: int) -> str:
        module = projection.module.format(layer=layer)
        return self.weight(f"{name}.bias", f"{module}.bias", (projection.outputs,), projection.rows)

    def rope(self, name: str, x: str, rope: RopeSpec, head_size: int, width: int) -> str:
        attributes = a.Rope(head_size, rope.rotary_size, rope.style, rope.inverse_frequencies, rope.attention_factor)
        return self.op("rope", name, (x, "positions"), attributes, width)


def _block(builder: Builder, spec: LayerSpec, layer: int, x: str, hidden: int) -> str:
    """Both halves with their residual sums."""
    mixer = spec.mixer
    if isinstance(mixer, StateSpaceSpec):
        here, mixed = f"layers.{layer}.state_space", state_space(builder, mixer, layer, x, hidden)
    else:
        here, mixed = f"layers.{layer}.attention", attention(builder, mixer, layer, x, hidden)
    residual = _add(builder, here, x, mixed, mixer.stream_norm, layer, hidden)
    if spec.feed_forward is None:
        return residual
    output = feed_forward(builder, spec.feed_forward, layer, x if spec.parallel_residual else residual, hidden)
    return _add(builder, f"layers.{layer}.mlp", residual, output, spec.feed_forward.stream_norm, layer, hidden)


def _add(
    builder: Builder, here: str, stream: str, added: str, stream_norm: NormSpec | None, layer: int, hidden: int
) -> str:
    """The stream with what a half of a block adds to it."""
    total = builder.op("add", f"{here}.residual", (stream, added), a.Add(), hidden)
    return total if stream_norm is None else builder.norm(f"{here}.stream_norm", total, stream_norm, hidden, layer)


def _embed(builder: Builder, spec: ArchSpec) -> str:
    width = spec.embedding_width
    table = builder.weight("embed.weight", f"{spec.embedding}.weight", (spec.vocabulary_size, width))
    x = builder.op("embed", "embed", ("token_ids",), a.Embed(), width, (table,))
    if spec.embedding_scale is not None:
        x = builder.op("scale", "embed.scaled", (x,), a.Scale(spec.embedding_scale), width)
    if spec.narrow is not None:
        x = _through(builder, "embed.inward", x, spec.narrow.inward, (spec.hidden_size, width))
        width = spec.hidden_size
    if spec.token_types is not None:
        shape = (spec.token_types.rows, width)
        table = builder.weight("embed.token_types.weight", f"{spec.token_types.module}.weight", shape)
        x = builder.op("add", "embed.typed", (x,), a.Add(), width, (table,))
    if spec.positions is not None:
        x = builder.op("add", "embed.sum", (x, _positions(builder, spec.positions, width)), a.Add(), width)
    if spec.embedding_norm is not None:
        x = builder.norm("embed.norm", x, spec.embedding_norm, width)
    return x


def _through(builder: Builder, name: str, x: str, module: str, shape: tuple[int, int], rows: str = "tokens") -> str:
    """A linear between narrow embeddings and the stream; it stays as it is stored, whatever blocks are packed to."""
    weight = builder.weight(f"{name}.weight", f"{module}.weight", shape)
    return builder.op("linear", name, (x,), a.Linear(), shape[0], (weight,), rows=rows)


def _positions(builder: Builder, table: PositionTable, width: int) -> str:
    rows = None if table.first == 0 else ((table.first, table.rows),)
    shape = (table.rows - table.first, width)
    weight = builder.weight("embed.positions.weight", f"{table.module}.weight", shape, rows)
    return builder.op("embed", "embed.positions", ("positions",), a.Embed(), width, (weight,))


def _head(builder: Builder, spec: ArchSpec, x: str) -> str:
    """Output rows first, so that norm and projection touch only those. Returns the program's output."""
    width, vocabulary = spec.hidden_size, spec.vocabulary_size
    x = builder.op("gather", "head.rows", (x, "output_rows"), a.Gather(), width, rows="outputs")
    if spec.final_norm is not None:
        x = builder.norm("head.norm", x, spec.final_norm, width, rows="outputs")
    if spec.narrow is not None:
        x = _through(builder, "head.outward", x, spec.narrow.outward, (spec.narrow.width, width), "outputs")
        width = spec.narrow.width
    if spec.head is None:
        return x
    if spec.tied_head:
        weight = builder.weight("embed.weight", f"{spec.embedding}.weight", (vocabulary, width))
    else:
        weight = builder.weight("head.weight", f"{spec.head}.weight", (vocabulary, width))
    weights: tuple[str, ...] = (weight,)
    if spec.head_bias:
        weights = (weight, builder.weight("head.bias", f"{spec.head}.bias", (vocabulary,)))
    steps: list[tuple[str, str, object]] = [("logits", "head.logits", a.Logits())]
    if spec.logits_multiplier is not None:
        steps.append(("scale", "head.scaled", a.Scale(spec.logits_multiplier)))
    if spec.logits_softcap is not None:
        steps.append(("softcap", "head.capped", a.Softcap(spec.logits_softcap)))
    for kind, name, attributes in steps:
        name = "logits" if attributes is steps[-1][2] else name
        x = builder.op(kind, name, (x,), attributes, vocabulary, weights, rows="outputs")
        weights = ()
    return x


def _cache_groups(spec: ArchSpec) -> Mapping[int | None, int]:
    """Window -> the cache group of layers that have it: those that see everything first, then the longest window."""
    windows = {attention.window for attention in spec.attentions.values()}
    ordered = sorted(windows, key=lambda window: (window is not None, -(window or 0)))
    return {window: group for group, window in enumerate(ordered)}


def build_program(
    spec: ArchSpec,
    weight_types: WeightTypes,
    kv_types: Sequence[DenseType | Scheme] | None = None,
    terms: Mapping[str, Terms] = _NO_TERMS,
    rotations: Mapping[str, int] = _NO_ROTATIONS,
) -> Program:
    """The program of a model: inputs and the output ``logits`` fp32 [outputs, vocabulary] have fixed names; without
    a head the output is the hidden states.

    ``weight_types`` answers for every checkpoint tensor name the spec leads to; ``kv_types``: one a layer, a
    Scheme where the checkpoint prescribes one for its KV cache. ``terms``: of the linears that are not just their
    weight, by module. ``rotations``: size of the runs that Hadamard's matrix turns, by module: of a linear's input, or
    of an attention's queries and keys behind their positions.
    """
    builder = Builder(weight_types, kv_types, terms, rotations, _cache_groups(spec))
    ranges: list[tuple[str, str, int, int]] = []
    x = _embed(builder, spec)
    ranges.append(("embed", "embed", 0, len(builder.ops)))
    for layer, block in enumerate(spec.layers):
        start = len(builder.ops)
        x = _block(builder, block, layer, x, spec.hidden_size)
        ranges.append((f"layers.{layer}", "block", start, len(builder.ops)))
    start = len(builder.ops)
    outputs = (_head(builder, spec, x),)
    ranges.append(("head", "head", start, len(builder.ops)))

    ops = tuple(builder.ops)
    inputs = (*INPUTS, STATE_SLOTS) if builder.slot_states else INPUTS
    given = tuple(value.name for value in inputs)
    crossings = boundaries(ops, [(start, stop) for _, _, start, stop in ranges], given, outputs)
    segments = tuple(
        Segment(*where, *crossing)  # type: ignore[arg-type]
        for where, crossing in zip(ranges, crossings, strict=True)
    )
    weights = tuple(builder.weights.values())
    return Program(
        inputs,
        tuple(builder.values),
        weights,
        tuple(builder.states),
        ops,
        segments,
        outputs,
        slot_states=tuple(builder.slot_states),
    )
