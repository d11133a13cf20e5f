# SPDX-License-Identifier: Apache-2.0
"""Typed attributes of every op kind. A kind that is not in ``ATTRIBUTES`` does not exist.

Values are two-dimensional ``[rows, width]`` unless said otherwise; heads lie side by side in ``width``. Of a value
``[rows, chosen, width]`` every row has ``chosen`` rows of its own, one for each of its experts.
"""

from dataclasses import dataclass, field
from typing import Literal

from linnet.schemes.scheme import LATER, Scheme

Activation = Literal["silu", "gelu", "gelu_tanh", "relu", "gelu_sigmoid", "relu_squared"]
"""gelu_sigmoid: x * sigmoid(1.702 x); relu_squared: relu(x)^2."""


@dataclass(frozen=True)
class Embed:
    """token_ids or positions, int32 [tokens] -> fp32 [tokens, width]. weights: (table [rows, width],)."""


@dataclass(frozen=True)
class Norm:
    """Normalise each run of ``size`` elements of a row. weights: (gain, optional bias), each [size] for all runs or
    [width] or [width / size, size], of every element its own.

    rms: x / sqrt(mean(x^2) + epsilon) * (gain + offset); layer: (x - mean) / sqrt(var + epsilon) * gain + bias.
    """

    flavour: Literal["rms", "layer"]
    size: int
    epsilon: float
    offset: float = 0.0


@dataclass(frozen=True)
class Linear:
    """x [rows, columns] -> fp32 [rows, outputs]: x @ weight.T + bias. weights: (weight, optional bias)."""


@dataclass(frozen=True)
class SparseLinear:
    """fp32 [rows, columns] -> fp32 [rows, outputs]: of every output a few products alone, y[o] = sum over j, ascending,
    of values[o, j] * x[columns[o, j]]. weights: (values [outputs, n], columns int32 [outputs, n])."""


@dataclass(frozen=True)
class Logits:
    """The vocabulary projection: as Linear, named apart because it runs on output rows only."""


@dataclass(frozen=True)
class Router:
    """As Linear, named apart because it is never rounded: which experts a token gets must not hang on a rounding."""


@dataclass(frozen=True)
class Route:
    """Scores fp32 [rows, experts] -> (ids int32 [rows, chosen], weights fp32 [rows, chosen]), the best expert first.

    Scores become probabilities (their softmax, or the sigmoid of each); the ``chosen`` greatest are taken, ties to the
    lowest expert; ``normalise`` divides them by their sum; all are multiplied by ``factor``. Of ``groups`` of
    neighbours only the ``groups_chosen`` that hold the greatest ones are looked at (ties to the lowest group): a group
    ranks by the sum of its ``group_best`` greatest, from the greatest on. weights: (correction [experts],) or none:
    added to the probabilities while experts and groups are chosen, not to what counts.
    """

    chosen: int
    scoring: Literal["softmax", "sigmoid"]
    normalise: bool = False
    factor: float = 1.0
    groups: int = field(default=1, metadata=LATER)
    groups_chosen: int = field(default=1, metadata=LATER)
    group_best: int = field(default=1, metadata=LATER)


@dataclass(frozen=True)
class Experts:
    """One linear of every expert: (x, ids int32 [rows, chosen]) -> fp32 [rows, chosen, outputs], at [r, i] row r's
    product with the weight of expert ids[r, i]. x is [rows, columns], or [rows, chosen, columns] with a row for each
    choice. weights: one [outputs, columns] for each of ``experts``, then, with ``biases``, as many biases [outputs].
    """

    experts: int
    biases: bool = False


@dataclass(frozen=True)
class Combine:
    """(x [rows, chosen, width], weights [rows, chosen]) -> [rows, width]: weights[0] * x[0] + weights[1] * x[1] and
    so on from left to right, every product and every sum rounded to fp32. x is [rows, width] where one is chosen."""


@dataclass(frozen=True)
class Add:
    """a + b, fp32, same shape; with one input and a weight (table [n, width]): its first row is
    added to every row."""


@dataclass(frozen=True)
class LowRankAdd:
    """What each row's adapter adds to a linear's result (LoRA, Hu et al. 2021, section 4.1): fp32 (y [rows, outputs],
    x [rows, columns], adapters int32 [tokens], and output_rows int32 [outputs] where rows are not tokens) ->
    y + up @ (factor * (down @ x)).

    down [rank, columns], up [outputs, rank] and factor are what the executable was given under the op's name for the
    row's adapter (``Executable.set_adapter``). Rows of adapter -1, and of one that was given nothing under that name,
    are y, bit for bit.
    """


@dataclass(frozen=True)
class Scale:
    """x * factor."""

    factor: float


@dataclass(frozen=True)
class Softcap:
    """limit * tanh(x / limit)."""

    limit: float


@dataclass(frozen=True)
class Cast:
    """Round to the output's dtype (nearest even)."""


@dataclass(frozen=True)
class Quantise:
    """fp32 [rows, width] -> codes + scales as one value whose dtype is ``scheme``: int8, int4 or
    fp8_e4m3.

    Dynamic (per token or group): scale = max|x| / 127.5 (int8; 127 in a narrow range), / 7.5 (int4), / 448 (fp8);
    asymmetric:
    (max - min) / 255 over values that include 0, zero point = clamp(round(-128 - min / scale)). Static (per tensor):
    weights are (scale [1], and if asymmetric zero point [1]). code = clamp(round(x / scale + zero point)), to nearest
    even.
    """

    scheme: Scheme


@dataclass(frozen=True)
class Dequantise:
    """The inverse of Quantise: (codes - zero points) * scales -> fp32."""


@dataclass(frozen=True)
class Rope:
    """Rotate the first ``rotary_size`` elements of every head. inputs: (x, positions int32 [tokens]).

    half: pairs (i, i + rotary_size / 2); interleaved: pairs (2i, 2i + 1). angle = position * inverse_frequencies[i];
    cos and sin are multiplied by ``attention_factor`` (YaRN, long rope).
    """

    head_size: int
    rotary_size: int
    style: Literal["half", "interleaved"]
    inverse_frequencies: tuple[float, ...]
    attention_factor: float = 1.0


@dataclass(frozen=True)
class KVWrite:
    """Store this step's rows. inputs: (key, value, kv_slots int32 [tokens], those of the state's cache group); states:
    (kv,); no outputs."""


@dataclass(frozen=True)
class Attention:
    """Paged attention: a row at position p reads keys 0..p of its sequence (the last ``window`` of them if set).

    inputs: (query, positions, query_start, context_lengths, block_tables of the state's cache group); states: (kv,).
    ``full``: it reads every key of its sequence instead, whose rows must all be in the step.
    score = softcap(scale * q.k) + alibi_slopes[head] * key_position. Output fp32 [tokens, heads * value_head_size].
    weights: (sinks [heads],) or none: of every head a score more, whose value is zero: it takes a share of the weight.
    arithmetic bf16: the query is rounded to bf16, and so is every weight exp(score - m) (times the scale of a quantised
    value) before it multiplies its value, m being the greatest score among those of the row's keys that lie in the same
    256 absolute positions; the sum that normalises them takes the unrounded weights. Keys and values enter as stored
    (their codes are exact in bf16), sums are fp32.
    """

    heads: int
    kv_heads: int
    head_size: int
    scale: float
    window: int | None = None
    softcap: float | None = None
    alibi_slopes: tuple[float, ...] | None = None
    arithmetic: Literal["fp32", "bf16"] = "fp32"
    full: bool = field(default=False, metadata=LATER)


@dataclass(frozen=True)
class Conv:
    """Causal depthwise convolution along a sequence: y[p] = bias + sum over k, ascending, of weight[k] * x[p - taps + 1
    + k], where x before position 0 is 0. inputs: (x, query_start, positions, state_slots); weights: (taps of each
    channel [width, 1, taps], optional bias [width]); states: (the last taps - 1 inputs [taps - 1, width],).
    """

    taps: int


@dataclass(frozen=True)
class Scan:
    """Selective scan along a sequence. inputs: (x, steps, B, C, query_start, positions, state_slots). For channel c of
    head c // ``head_size`` and of group c // (width / ``groups``), and every one of ``states``:

    step = softplus(steps[head] + bias[head]); h = exp(step * A) * h + step * x * B[group]; y = h . C[group] + D * x,
    with A = -exp(weight). Sums run over the states, ascending; h before position 0 is 0. weights: (log of A [heads,
    states], or [heads] where it is the same for all; D [heads]; optional bias [heads]); states: (h [states, width],).
    """

    states: int
    head_size: int = 1
    groups: int = 1


@dataclass(frozen=True)
class Gate:
    """One input: activation(x). Two inputs (gate, up): activation(gate) * (up + up_offset), where ``limit`` holds gate
    at most there and up between its negative and it, first. ``pairs``: one input that holds both by turns, gate first,
    twice as wide as the output."""

    activation: Activation
    limit: float | None = field(default=None, metadata=LATER)
    up_offset: float = field(default=0.0, metadata=LATER)
    pairs: bool = field(default=False, metadata=LATER)


@dataclass(frozen=True)
class Gather:
    """Rows of x named by an index input: (x, rows int32 [outputs]) -> [outputs, width]."""


@dataclass(frozen=True)
class Leading:
    """x [outputs, width] -> [logit_rows, width]: the first rows, those whose logits are wanted."""


@dataclass(frozen=True)
class OrderColumns:
    """Column c of the output is column order[c] of the input. weights: (order int32 [width],), not always a
    permutation: where outliers are multiplied apart, a neighbour stands in for each."""


@dataclass(frozen=True)
class JoinHeads:
    """(a [rows, heads * m], b [rows, heads * n]) -> [rows, heads * (m + n)]: of every head what is a's, then what is
    b's. ``shared``: a is [rows, m], the same for all heads."""

    heads: int
    shared: bool = False


@dataclass(frozen=True)
class Hadamard:
    """Each run of ``size`` neighbours of a row times the Walsh-Hadamard matrix of that order (a power of two from 2 on,
    Sylvester's), divided by sqrt(size): orthogonal, symmetric, its own inverse.

    Bits: x / sqrt(size), in fp32, then sums and differences of pairs 1, 2, 4 ... size / 2 apart.
    """

    size: int


@dataclass(frozen=True)
class Linears:
    """Several linears of one input as one op (see ``fuse``): what they are stands in the op's expansion."""


@dataclass(frozen=True)
class GatedLinears:
    """Linears of one input, the activation that joins them, maybe its rounding: one op over ranges of their outputs."""


@dataclass(frozen=True)
class LowRankAdds:
    """Several low_rank_adds of one x as one op."""


@dataclass(frozen=True)
class RowChain:
    """Ops of ROW_KINDS whose row i reads only row i of what the chain itself writes: done row by row in one pass."""


ATTRIBUTES: dict[str, type] = {
    "embed": Embed,
    "norm": Norm,
    "linear": Linear,
    "sparse_linear": SparseLinear,
    "logits": Logits,
    "router": Router,
    "route": Route,
    "experts": Experts,
    "combine": Combine,
    "add": Add,
    "low_rank_add": LowRankAdd,
    "scale": Scale,
    "softcap": Softcap,
    "cast": Cast,
    "quantise": Quantise,
    "dequantise": Dequantise,
    "rope": Rope,
    "kv_write": KVWrite,
    "attention": Attention,
    "conv": Conv,
    "scan": Scan,
    "gate": Gate,
    "gather": Gather,
    "leading": Leading,
    "order_columns": OrderColumns,
    "join_heads": JoinHeads,
    "hadamard": Hadamard,
    "linears": Linears,
    "gated_linears": GatedLinears,
    "low_rank_adds": LowRankAdds,
    "row_chain": RowChain,
}

FUSED_KINDS = ("linears", "gated_linears", "low_rank_adds", "row_chain")

ROW_KINDS = (
    "embed", "norm", "add", "scale", "softcap", "cast", "quantise", "dequantise", "rope", "kv_write", "gate", "gather",
    "order_columns", "hadamard", "route", "combine", "leading", "join_heads",
)  # fmt: skip
"""Kinds whose output row i needs no other row of a value written in the same chain."""
