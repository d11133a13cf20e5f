# SPDX-License-Identifier: Apache-2.0
"""What every op kind means, as pure functions on torch tensors (attention and its states: attention.py).

Everything is fp32 unless the op is a rounding (cast, quantise). Differentiable except through roundings.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch

from linnet.backends.reference.weights import LoadedWeight, QuantisedWeight, to_torch
from linnet.errors import UnsupportedError
from linnet.program.adapters import LowRank
from linnet.program.attributes import Gate, JoinHeads, Norm, Rope
from linnet.program.prescribed import keeps_codes, refuse_rounding
from linnet.schemes.codecs import code_range
from linnet.schemes.scheme import Scheme

TORCH_TYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16, "int32": torch.int32}


@dataclass(frozen=True)
class QuantisedValue:
    """A quantised activation: value = (code - zero point) * scale of its group."""

    codes: torch.Tensor  # int8 [rows, width], or fp8's numbers as fp32
    scales: torch.Tensor  # fp32 [rows, groups]
    group_size: int  # the last group may be shorter; the whole row for granularity token and tensor
    zero_points: torch.Tensor | None = None  # fp32 [rows, groups]
    integer: bool = True  # whether a linear multiplies its codes


def embed(token_ids: torch.Tensor, table: LoadedWeight) -> torch.Tensor:
    """Rows of the table."""
    ids = token_ids.long()
    if isinstance(table, QuantisedWeight):
        return table.take_rows(ids).dense()
    return table[ids].float()


def norm(x: torch.Tensor, attributes: Norm, gain: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    """RMS or layer norm of each run of ``size`` elements."""
    runs = x.float().reshape(x.shape[0], x.shape[1] // attributes.size, attributes.size)
    if attributes.flavour == "layer":
        runs = runs - runs.mean(dim=-1, keepdim=True)
    variance = runs.square().mean(dim=-1, keepdim=True)
    runs = runs / torch.sqrt(variance + attributes.epsilon) * (gain.view(-1, attributes.size) + attributes.offset)
    if bias is not None:
        runs = runs + bias.view(-1, attributes.size)
    return runs.reshape(x.shape)


def low_rank_add(
    y: torch.Tensor, x: torch.Tensor, own: torch.Tensor, name: str, adapters: Mapping[int, Mapping[str, LowRank]]
) -> torch.Tensor:
    """y plus up @ (factor * (down @ x)) of each row's adapter ``own`` int32 [rows]; -1 and what adds nothing: y."""
    result = y.float().clone()
    for adapter in sorted(set(own.tolist()) - {-1}):
        term = adapters[adapter].get(name)
        if term is not None:
            rows = torch.nonzero(own == adapter)[:, 0]
            narrow = x[rows].float() @ to_torch(term.down).T * term.factor
            result[rows] += narrow @ to_torch(term.up).T
    return result


def linear(x: torch.Tensor | QuantisedValue, weight: LoadedWeight, bias: torch.Tensor | None) -> torch.Tensor:
    """x @ weight.T + bias; of integer codes exact dots per group, scaled and added in group order.

    Any other quantised input is the numbers it stands for.
    """
    if isinstance(x, QuantisedValue) and not x.integer:
        x = dequantise(x)
    if isinstance(x, QuantisedValue):
        if not isinstance(weight, QuantisedWeight):
            raise UnsupportedError("a linear with a quantised input needs a weight of integer codes")
        return _integer_linear(x, weight, bias)
    dense = weight.dense() if isinstance(weight, QuantisedWeight) else weight
    return torch.nn.functional.linear(x.float(), dense, bias)


def sparse_linear(x: torch.Tensor, values: torch.Tensor, columns: torch.Tensor) -> torch.Tensor:
    """fp32 [rows, outputs]: of every output the products with its few ``values`` [outputs, n] at ``columns``."""
    dense = torch.zeros(len(values), x.shape[1]).scatter_add_(1, columns.long(), values)
    return torch.nn.functional.linear(x, dense)


def _integer_linear(x: QuantisedValue, weight: QuantisedWeight, bias: torch.Tensor | None) -> torch.Tensor:
    """y = bias + sum over groups g, in order, of float(dot of codes in g) * (x_scale[g] * weight_scale[g]); where the
    weight has minimums, less float(sum of x's codes in g) * (x_scale[g] * minimum[g]).

    The groups are the finer of the two; the coarser must be a whole number of them or the whole row. The dot is exact
    (float64 holds every integer below 2^53).
    """
    columns = x.codes.shape[1]
    group = min(x.group_size, weight.group_size)
    for name, size in (("input", x.group_size), ("weight", weight.group_size)):
        if size % group and size < columns:
            raise UnsupportedError(f"a linear's {name} group of {size} is not a multiple of the other's {group}")
    rows = x.codes.shape[0]
    result = torch.zeros(rows, weight.codes.shape[0]) if bias is None else bias.float().repeat(rows, 1)
    for start in range(0, columns, group):
        stop = min(start + group, columns)
        dot = (x.codes[:, start:stop].double() @ weight.codes[:, start:stop].double().T).float()
        scale = x.scales[:, start // x.group_size, None] * weight.scales[:, start // weight.group_size]
        result = result + dot * scale
        if weight.minimums is not None:
            total = x.codes[:, start:stop].double().sum(dim=1, keepdim=True).float()
            own = x.scales[:, start // x.group_size, None] * weight.minimums[:, start // weight.group_size]
            result = result - total * own
    return result


def quantise(
    x: torch.Tensor, scheme: Scheme, scale: torch.Tensor | None = None, zero_point: torch.Tensor | None = None
) -> QuantisedValue:
    """See attributes.Quantise; compressed-tensors' definition, as for weights. ``scale``, ``zero_point``: static ones.

    A group of zeros has scale 0 and codes 0; what is not finite makes its group so where codes are integers. Dynamic
    scales are fp32 whatever ``scale_dtype`` says: they are never stored.
    """
    if (reason := refuse_rounding(scheme)) is not None:
        raise UnsupportedError(reason)
    x = x.float()
    rows, width = x.shape
    group = min(scheme.group_size or width, width)
    groups = math.ceil(width / group)
    padded = torch.nn.functional.pad(x, (0, groups * group - width)).reshape(rows, groups, group)
    smallest, largest = code_range(scheme)
    zero_points = None
    if not scheme.dynamic:
        assert scale is not None
        scales = scale.float().reshape(1, 1).expand(rows, groups)
        if keeps_codes(scheme):  # as the kernels have it: NaN must not be lost in codes
            greatest = padded.abs().amax(dim=-1)
            scales = torch.where(greatest.isfinite(), scales, greatest)
        zero_points = None if zero_point is None else zero_point.float().reshape(1, 1).expand(rows, groups)
    elif scheme.symmetric:
        scales = padded.abs().amax(dim=-1) / torch.tensor(scheme.half_range)
    else:
        low, high = padded.amin(dim=-1).clamp(max=0), padded.amax(dim=-1).clamp(min=0)
        scales = (high - low) / torch.tensor(largest - smallest)
        zero_points = torch.round(smallest - low / _nonzero(scales)).clamp(smallest, largest)
    ratio = padded / _nonzero(scales)[..., None]
    if zero_points is not None:
        ratio = ratio + zero_points[..., None]
    ratio = ratio.clamp(smallest, largest)
    fp8 = scheme.element == "fp8_e4m3"
    codes = ratio.to(torch.float8_e4m3fn).float() if fp8 else torch.round(ratio).to(torch.int8)
    codes = codes.reshape(rows, groups * group)[:, :width].contiguous()
    return QuantisedValue(codes, scales, group, zero_points, keeps_codes(scheme))


def _nonzero(scales: torch.Tensor) -> torch.Tensor:
    return torch.where(scales == 0, torch.ones_like(scales), scales)


def dequantise(x: QuantisedValue) -> torch.Tensor:
    """(code - zero point) * scale."""
    width, codes = x.codes.shape[1], x.codes.float()
    if x.zero_points is not None:
        codes = codes - x.zero_points.repeat_interleave(x.group_size, dim=1)[:, :width]
    return codes * x.scales.repeat_interleave(x.group_size, dim=1)[:, :width]


def rope(x: torch.Tensor, positions: torch.Tensor, attributes: Rope) -> torch.Tensor:
    """Rotate the first ``rotary_size`` elements of every head by position * inverse frequency (angles in fp32)."""
    rows = x.shape[0]
    heads = x.float().reshape(rows, -1, attributes.head_size)
    size = attributes.rotary_size
    frequencies = torch.tensor(attributes.inverse_frequencies, dtype=torch.float32)
    angles = positions.float()[:, None] * frequencies
    cos = (angles.cos() * attributes.attention_factor)[:, None, :]
    sin = (angles.sin() * attributes.attention_factor)[:, None, :]
    half = attributes.style == "half"
    lower, upper = (slice(0, size // 2), slice(size // 2, size)) if half else (slice(0, size, 2), slice(1, size, 2))
    first, second = heads[..., lower], heads[..., upper]
    turned = torch.empty_like(heads)
    turned[..., lower] = first * cos - second * sin
    turned[..., upper] = second * cos + first * sin
    turned[..., size:] = heads[..., size:]
    return turned.reshape(x.shape)


def gate(x: torch.Tensor, up: torch.Tensor | None, attributes: Gate) -> torch.Tensor:
    """activation(x), times ``up`` if there is one: see Gate."""
    x = x.float()
    if attributes.pairs:
        x, up = x[..., ::2], x[..., 1::2]
    if attributes.limit is not None and up is not None:
        x, up = x.clamp(max=attributes.limit), up.clamp(-attributes.limit, attributes.limit)
    name = attributes.activation
    if name == "silu":
        activated = x * torch.sigmoid(x)
    elif name == "gelu":
        activated = torch.nn.functional.gelu(x)
    elif name == "gelu_tanh":
        activated = torch.nn.functional.gelu(x, approximate="tanh")
    elif name == "gelu_sigmoid":
        activated = x * torch.sigmoid(1.702 * x)
    else:
        activated = torch.relu(x) if name == "relu" else torch.relu(x).square()
    return activated if up is None else activated * (up + attributes.up_offset)


def softcap(x: torch.Tensor, limit: float) -> torch.Tensor:
    """limit * tanh(x / limit)."""
    return limit * torch.tanh(x / limit)


def join_heads(first: torch.Tensor, second: torch.Tensor, attributes: JoinHeads) -> torch.Tensor:
    """See attributes.JoinHeads."""
    rows, heads = second.shape[0], attributes.heads
    own = second.reshape(rows, heads, -1)
    before = first.reshape(rows, 1 if attributes.shared else heads, -1)
    return torch.cat((before.expand(-1, heads, -1), own), dim=2).reshape(rows, -1)


def hadamard(x: torch.Tensor, size: int) -> torch.Tensor:
    """Runs of ``size`` neighbours times their normalised Walsh-Hadamard matrix, in the order of sums that Hadamard
    says."""
    y = x * (torch.ones(1) / torch.tensor(float(size)).sqrt())
    apart = 1
    while apart < size:
        lower, upper = y.reshape(x.shape[0], -1, 2, apart).unbind(2)
        y = torch.stack((lower + upper, lower - upper), dim=2).reshape(x.shape)
        apart *= 2
    return y
