# SPDX-License-Identifier: Apache-2.0
"""ArchSpec: everything in which two model families differ, as data. No family is named here, none is branched on."""

from dataclasses import dataclass
from typing import Literal

from linnet.program.attributes import Activation

RowRanges = tuple[tuple[int, int], ...]
"""Half-open row ranges, concatenated in order."""


@dataclass(frozen=True)
class NormSpec:
    """One kind of norm, shared by all norms over the hidden state. See ``program.attributes.Norm``."""

    flavour: Literal["rms", "layer"]
    epsilon: float
    offset: float = 0.0
    bias: bool = False


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
    ``tensor_rows`` rows; several projections may share one fused tensor.
    """

    module: str
    tensor_rows: int
    columns: int
    bias: bool = False
    rows: RowRanges | None = None

    @property
    def outputs(self) -> int:
        """Rows of this projection, the width of what it computes."""
        return self.tensor_rows if self.rows is None else sum(stop - start for start, stop in self.rows)


@dataclass(frozen=True)
class AttentionSpec:
    """The attention half of a block. ``scale`` multiplies q.k; ``softcap`` and ``alibi_slopes`` as in the op."""

    norm: str
    query: Projection
    key: Projection
    value: Projection
    output: Projection
    heads: int
    kv_heads: int
    head_size: int
    scale: float
    query_norm: str | None = None
    key_norm: str | None = None
    head_norm: NormSpec | None = None
    rope: RopeSpec | None = None
    alibi_slopes: tuple[float, ...] | None = None
    softcap: float | None = None
    post_norm: str | None = None


@dataclass(frozen=True)
class MlpSpec:
    """The feed-forward half: ``down(activation(gate) * up)``, or ``down(activation(up))`` without a gate."""

    norm: str
    gate: Projection | None
    up: Projection
    down: Projection
    activation: Activation
    post_norm: str | None = None


@dataclass(frozen=True)
class ArchSpec:
    """A decoder-only transformer. Names are checkpoint modules; ``{layer}`` stands for the block's index.

    ``windows`` has one entry per block: how many last keys a query sees, or None for all. ``parallel_residual``:
    both halves of a block read its input and their outputs are summed. ``prefix`` is the part of the names that a
    checkpoint of the bare model (without the head) leaves out. ``max_positions`` is the longest context this spec
    serves; ``longest_positions`` what the family could reach if it were asked for (they differ for long rope only).
    """

    family: str
    prefix: str
    vocabulary_size: int
    hidden_size: int
    intermediate_size: int
    max_positions: int
    longest_positions: int
    windows: tuple[int | None, ...]
    norm: NormSpec
    embedding: str
    final_norm: str
    head: str
    tied_head: bool
    attention: AttentionSpec
    mlp: MlpSpec
    embedding_scale: float | None = None
    embedding_norm: str | None = None
    parallel_residual: bool = False
    logits_softcap: float | None = None

    @property
    def layers(self) -> int:
        """Number of blocks."""
        return len(self.windows)
