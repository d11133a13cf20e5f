# SPDX-License-Identifier: Apache-2.0
"""What every op kind means, as pure functions on torch tensors (attention and its states: attention.py).

Everything is fp32 unless the op is a rounding (cast, quantise). Differentiable except through roundings.
"""

import math
from dataclasses import dataclass

import torch

from linnet.backends.reference.weights import LoadedWeight, QuantisedWeight
from linnet.errors import UnsupportedError
from linnet.program.attributes import Gate, Norm, Rope
from linnet.schemes.scheme import Scheme

TORCH_TYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16, "int32": torch.int32}


@dataclass(frozen=True)
class QuantisedValue:
    """A dynamically quantised activation: value = code * scale of its group."""

    codes: torch.Tensor  # int8 [rows, width]
    scales: torch.Tensor  # fp32 [rows, groups]
    group_size: int  # the last group may be shorter; the whole row for granularity token


def embed(token_ids: torch.Tensor, table: LoadedWeight) -> torch.Tensor:
    """Rows of the table."""
    ids = token_ids.long()
    if isinstance(table, QuantisedWeight):
        return QuantisedWeight(table.codes[ids], table.scales[ids], table.group_size).dense()
    return table[ids].float()


def norm(x: torch.Tensor, attributes: Norm, gain: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    """RMS or layer norm of each run of ``size`` elements."""
    runs = x.float().reshape(x.shape[0], x.shape[1] // attributes.size, attributes.size)
    if attributes.flavour == "layer":
        runs = runs - runs.mean(dim=-1, keepdim=True)
    variance = runs.square().mean(dim=-1, keepdim=True)
    runs = runs / torch.sqrt(variance + attributes.epsilon) * (gain + attributes.offset)
    if bias is not None:
        runs = runs + bias
    return runs.reshape(x.shape)


def linear(x: torch.Tensor | QuantisedValue, weight: LoadedWeight, bias: torch.Tensor | None) -> torch.Tensor:
    """x @ weight.T + bias; with a quantised input exact integer dots per group, scaled and added in group order."""
    if isinstance(x, QuantisedValue):
        if not isinstance(weight, QuantisedWeight):
            raise UnsupportedError("a linear with a quantised input needs a weight of integer codes")
        return _integer_linear(x, weight, bias)
    dense = weight.dense() if isinstance(weight, QuantisedWeight) else weight
    return torch.nn.functional.linear(x.float(), dense, bias)


def _integer_linear(x: QuantisedValue, weight: QuantisedWeight, bias: torch.Tensor | None) -> torch.Tensor:
    """y = bias + sum over groups g, in order, of float(dot of codes in g) * (x_scale[g] * weight_scale[g]).

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
    return result


def quantise(x: torch.Tensor, scheme: Scheme) -> QuantisedValue:
    """Dynamic symmetric int8: scale = max |x| / 127.5 (fp32), code = clamp(round_to_even(x / scale), -128, 127).

    This is compressed-tensors' definition, as for weights. A group of zeros has scale 0 and codes 0. Dynamic scales
    are fp32 whatever ``scale_dtype`` says: they are never stored.
    """
    if scheme.element != "int8" or not scheme.symmetric or not scheme.dynamic:
        raise UnsupportedError(f"activations can be quantised to dynamic symmetric int8, not {scheme}")
    if scheme.granularity not in ("token", "group"):
        raise UnsupportedError(f"activations are quantised per token or group, not per {scheme.granularity}")
    x = x.float()
    rows, width = x.shape
    group = min(scheme.group_size or width, width)
    groups = math.ceil(width / group)
    padded = torch.nn.functional.pad(x, (0, groups * group - width)).reshape(rows, groups, group)
    scales = padded.abs().amax(dim=-1) / torch.tensor(127.5)
    divisor = torch.where(scales == 0, torch.ones_like(scales), scales)
    codes = torch.round(padded / divisor[..., None]).clamp(-128, 127).to(torch.int8)
    return QuantisedValue(codes.reshape(rows, groups * group)[:, :width].contiguous(), scales, group)


def dequantise(x: QuantisedValue) -> torch.Tensor:
    """code * scale."""
    width = x.codes.shape[1]
    return x.codes.float() * x.scales.repeat_interleave(x.group_size, dim=1)[:, :width]


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
    """activation(x), times ``up`` if there is one."""
    x = x.float()
    name = attributes.activation
    if name == "silu":
        activated = x * torch.sigmoid(x)
    elif name == "gelu":
        activated = torch.nn.functional.gelu(x)
    elif name == "gelu_tanh":
        activated = torch.nn.functional.gelu(x, approximate="tanh")
    else:
        activated = torch.relu(x)
    return activated if up is None else activated * up


def softcap(x: torch.Tensor, limit: float) -> torch.Tensor:
    """limit * tanh(x / limit)."""
    return limit * torch.tanh(x / limit)
