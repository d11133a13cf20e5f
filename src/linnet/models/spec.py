# SPDX-License-Identifier: Apache-2.0
"""ArchSpec: everything in which two model families differ, as data. No family is named here, none is branched on."""

from dataclasses import dataclass, replace
from typing import Literal

from linnet.formats.joined import Joined
from linnet.formats.stacked import Stacked
from linnet.program.attributes import Activation

RowRanges = tuple[tuple[int, int], ...]
"""Half-open row ranges, concatenated in order."""


@dataclass(frozen=True)
class NormSpec:
    """One norm: the checkpoint module of its gain and its rule, see ``program.attributes.Norm``. ``apart``: where
    runs of a value are normalised by themselves, each has gains of its own; ``by_run``: these lie [runs, size]."""

    module: str
    flavour: Literal["rms", "layer"]
    epsilon: float
    offset: float = 0.0
    bias: bool = False
    apart: bool = False
    by_run: bool = False


@dataclass(frozen=True)
class RopeSpec:
    """Rotary positions: the first ``rotary_size`` elements of a head turn, each pair with its own frequency."""

    rotary_size: int
    style: Literal["half", "interleaved"]
    inverse_frequencies: tuple[float, ...]
    attention_factor: float = 1.0


@dataclass(frozen=True)
class Projection:
    """One linear of a block: the checkpoint module it lies in and which of that tensor's rows are its own.

    ``module`` has a ``{layer}`` placeholder and no ``.weight``. ``rows`` None means the whole tensor of
    ``tensor_rows`` rows; several projections may share one fused tensor. ``by_inputs``: a dense tensor is published
    as [columns, tensor_rows], which the loader turns; nothing after it knows.
    """

    module: str
    tensor_rows: int
    columns: int
    bias: bool = False
    rows: RowRanges | None = None
    by_inputs: bool = False

    @property
    def outputs(self) -> int:
        """Rows of this projection, the width of what it computes."""
        return self.tensor_rows if self.rows is None else sum(stop - start for start, stop in self.rows)


@dataclass(frozen=True)
class Narrowed:
    """What some linears read in the stream's stead: ``down`` of the stream, normalised by ``norm``."""

    down: Projection
    norm: NormSpec


@dataclass(frozen=True)
class AttentionSpec:
    """A mixer that attends. ``scale`` multiplies q.k; ``window``: how many last keys a query sees, None for all.

    ``query_norm`` and ``key_norm`` normalise every head by itself, or all of them as one with ``norm_whole``;
    ``softcap``, ``alibi_slopes`` and ``full`` as in the op, and what the tensor ``sinks`` holds. ``norm`` None: it
    reads the stream as it is. ``output_norm`` normalises what ``output`` reads. What ``post_norm`` made of its output,
    times ``multiplier``, is added to the stream; ``stream_norm`` normalises the sum.

    ``query`` may read ``query_narrow``, ``key`` and ``value`` ``kv_narrow`` (latent attention, DeepSeek-AI 2024,
    section 2.1). ``shared_key``: what it makes of the stream turns as a whole and stands first in the key of every
    head, so that ``key`` makes the rest alone; a query has its rotary elements first too. ``value_head_size`` None: of
    values as of keys.
    """

    norm: NormSpec | None
    query: Projection
    key: Projection
    value: Projection
    output: Projection
    heads: int
    kv_heads: int
    head_size: int
    scale: float
    window: int | None = None
    query_norm: NormSpec | None = None
    key_norm: NormSpec | None = None
    rope: RopeSpec | None = None
    alibi_slopes: tuple[float, ...] | None = None
    softcap: float | None = None
    post_norm: NormSpec | None = None
    norm_whole: bool = False
    multiplier: float | None = None
    stream_norm: NormSpec | None = None
    full: bool = False
    sinks: str | None = None
    output_norm: NormSpec | None = None
    query_narrow: Narrowed | None = None
    kv_narrow: Narrowed | None = None
    shared_key: Projection | None = None
    value_head_size: int | None = None

    @property
    def value_size(self) -> int:
        """Elements of a value of one head."""
        return self.head_size if self.value_head_size is None else self.value_head_size

    @property
    def projections(self) -> tuple[Projection, ...]:
        """Its linears: those that lead to others first."""
        narrow = tuple(part.down for part in (self.query_narrow, self.kv_narrow) if part is not None)
        shared = () if self.shared_key is None else (self.shared_key,)
        return (*narrow, *shared, self.query, self.key, self.value, self.output)

    def module(self, layer: int) -> str:
        """The checkpoint module that holds a block's keys and values: what its projections have in common."""
        return self.key.module.format(layer=layer).rpartition(".")[0]


@dataclass(frozen=True)
class StateSpaceSpec:
    """A mixer that carries a state: a convolution along the sequence, then a selective scan (``program.attributes``).

    ``gate`` and ``x`` read the stream. ``steps`` (time steps), ``inward`` (B) and ``outward`` (C) read what the
    convolution made of ``x``, ``steps`` through ``narrow_steps``; without that they read the stream as well, and B and
    C are convolved beside x. ``module`` holds the taps (``conv1d``), the decays, the skips and, with ``step_bias``, the
    biases of the steps. What the scan yields, gated and then normalised by ``gated_norm`` in runs of a group, is what
    ``output`` reads. Norms and multiplier: as in AttentionSpec.
    """

    norm: NormSpec | None
    module_name: str
    gate: Projection
    x: Projection
    steps: Projection
    inward: Projection
    outward: Projection
    output: Projection
    taps: int
    states: int
    activation: Activation = "silu"
    head_size: int = 1
    groups: int = 1
    narrow_steps: Projection | None = None
    conv_bias: bool = True
    step_bias: bool = False
    shared_decay: bool = False
    gated_norm: NormSpec | None = None
    post_norm: NormSpec | None = None
    multiplier: float | None = None
    stream_norm: NormSpec | None = None

    @property
    def projections(self) -> tuple[Projection, ...]:
        """Its linears, in the order they run."""
        narrow = () if self.narrow_steps is None else (self.narrow_steps,)
        return (self.gate, self.x, *narrow, self.inward, self.outward, self.steps, self.output)

    def module(self, layer: int) -> str:
        """The checkpoint module of the mixer."""
        return self.module_name.format(layer=layer)


Mixer = AttentionSpec | StateSpaceSpec


@dataclass(frozen=True)
class MlpSpec:
    """A dense feed-forward: ``down(activation(gate) * up)``, or ``down(activation(up))`` without a gate.

    ``inner_norm`` normalises what ``down`` reads. Its norms and multiplier: as in AttentionSpec."""

    norm: NormSpec | None
    gate: Projection | None
    up: Projection
    down: Projection
    activation: Activation
    inner_norm: NormSpec | None = None
    post_norm: NormSpec | None = None
    multiplier: float | None = None
    stream_norm: NormSpec | None = None

    @property
    def projections(self) -> tuple[Projection, ...]:
        """Its linears, in the order they run."""
        return (*(() if self.gate is None else (self.gate,)), self.up, self.down)


@dataclass(frozen=True)
class SharedSpec:
    """The feed-forward that every token goes through beside its experts; ``gate`` None: it counts in full, else by the
    sigmoid of one score. Its norm is the experts'."""

    mlp: MlpSpec
    gate: Projection | None


@dataclass(frozen=True)
class ExpertsSpec:
    """A feed-forward of many experts, of which every token gets ``chosen``, see ``program.attributes.Route``.

    Modules of ``gate``, ``up`` and ``down`` have an ``{expert}`` placeholder beside ``{layer}``; ``gate`` None: outputs
    of ``up`` are gate and up by turns. ``limit``, ``up_offset`` and what is said of groups as in the ops, and what the
    tensor ``correction`` holds. ``router`` has one output per expert. Its norms and multiplier: as in AttentionSpec.
    """

    norm: NormSpec | None
    router: Projection
    gate: Projection | None
    up: Projection
    down: Projection
    activation: Activation
    experts: int
    chosen: int
    scoring: Literal["softmax", "sigmoid"] = "softmax"
    normalise: bool = False
    factor: float = 1.0
    groups: int = 1
    groups_chosen: int = 1
    group_best: int = 1
    correction: str | None = None
    limit: float | None = None
    up_offset: float = 0.0
    shared: SharedSpec | None = None
    post_norm: NormSpec | None = None
    multiplier: float | None = None
    stream_norm: NormSpec | None = None

    def of(self, projection: Projection, expert: int) -> Projection:
        """One expert's."""
        return replace(projection, module=projection.module.replace("{expert}", str(expert)))

    @property
    def projections(self) -> tuple[Projection, ...]:
        """Its linears, in the order they run; the router and the shared expert's gate are none."""
        parts = [*([] if self.gate is None else [self.gate]), self.up, self.down]
        own = [self.of(part, expert) for part in parts for expert in range(self.experts)]
        return (*own, *(() if self.shared is None else self.shared.mlp.projections))


FeedForward = MlpSpec | ExpertsSpec


@dataclass(frozen=True)
class LayerSpec:
    """One block: a mixer and a feed-forward, if it has one, each with its own norms; both add to the residual stream.

    ``parallel_residual``: both read the block's input and their outputs are summed; one norm that both have before
    them is computed once.
    """

    mixer: Mixer
    feed_forward: FeedForward | None
    parallel_residual: bool = False

    @property
    def projections(self) -> tuple[Projection, ...]:
        """The linears of both halves, in the order they run."""
        return self.mixer.projections + (() if self.feed_forward is None else self.feed_forward.projections)

    @property
    def first_norm(self) -> NormSpec:
        """A norm that every checkpoint stores under one name, whatever its linears are stored as."""
        found = self.mixer.norm or self.mixer.post_norm or self.mixer.stream_norm
        assert found is not None, "a block without a norm around its mixer"
        return found


@dataclass(frozen=True)
class PositionTable:
    """Learned positions, added to the embedding: a table of ``rows``, of which ``first`` holds position 0."""

    module: str
    rows: int
    first: int = 0


@dataclass(frozen=True)
class TokenTypes:
    """What kinds of tokens there are, of which the first is that of all: a table of ``rows``."""

    module: str
    rows: int


@dataclass(frozen=True)
class Narrow:
    """Embedding and head of ``width`` columns around wider blocks: linears without biases lead in and out."""

    width: int
    inward: str
    outward: str


@dataclass(frozen=True)
class ArchSpec:
    """A transformer without a second half that attends to the first. Names are checkpoint modules; ``{layer}`` stands
    for the block's index.

    ``layers`` has one entry per block; blocks that are alike share one. ``prefix`` is the part of the names that a
    checkpoint of the bare model (without the head) leaves out. ``max_positions`` is the longest context this spec
    serves; ``longest_positions`` what the family could reach if it were asked for (they differ for long rope only).
    ``head`` None: it tells hidden states and no next token. ``token_types``: of a table whose first row is added to
    every embedding. ``arranged``: published tensors that hold several, or of which several are one.
    """

    family: str
    prefix: str
    vocabulary_size: int
    hidden_size: int
    max_positions: int
    longest_positions: int
    layers: tuple[LayerSpec, ...]
    embedding: str
    final_norm: NormSpec | None
    head: str | None
    tied_head: bool
    embedding_scale: float | None = None
    embedding_norm: NormSpec | None = None
    positions: PositionTable | None = None
    token_types: TokenTypes | None = None
    narrow: Narrow | None = None
    head_bias: bool = False
    logits_multiplier: float | None = None
    logits_softcap: float | None = None
    arranged: tuple[Stacked | Joined, ...] = ()

    @property
    def output_width(self) -> int:
        """Of an output row: logits, or hidden states where there is no head."""
        return self.hidden_size if self.head is None else self.vocabulary_size

    @property
    def embedding_width(self) -> int:
        """Columns of embedding and head."""
        return self.hidden_size if self.narrow is None else self.narrow.width

    def attention_module(self, layer: int) -> str:
        """See AttentionSpec.module."""
        return self.layers[layer].mixer.module(layer)

    @property
    def attentions(self) -> dict[int, AttentionSpec]:
        """Of the layers that attend, by their index."""
        mixers = ((index, layer.mixer) for index, layer in enumerate(self.layers))
        return {index: mixer for index, mixer in mixers if isinstance(mixer, AttentionSpec)}

    def by_inputs(self) -> frozenset[str]:
        """Names of the dense tensors that are published [inputs, outputs], see Projection."""
        return frozenset(
            f"{projection.module.format(layer=index)}.weight"
            for index, layer in enumerate(self.layers)
            for projection in layer.projections
            if projection.by_inputs
        )
