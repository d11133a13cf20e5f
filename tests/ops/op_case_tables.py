# SPDX-License-Identifier: Apache-2.0
"""The OpCases there are: a table on which backends must agree, and one of real sizes to be timed."""

import itertools
from dataclasses import replace
from typing import get_args

from op_cases import SPARSE, Inputs, OpCase

from linnet.backends.interface import KVCache, Policy
from linnet.program import attributes as a

FAST_SCHEMES = (
    "W4A16", "W4A16-g32", "W4A16-g64", "W4A16-g32-asym", "W4A16-channel", "W8A16", "W8A16-g128", "W8A8", "W4A8",
    "W4A4", "W4A4-g32-ag32", "W2A16", "W3A16", "TERNARY", "TERNARY-g64", "BINARY", "BINARY-g64", "FP8", "FP8_DYNAMIC",
    "NF4", "NF4-g16", "bf16", "fp16", "KMEANS2", "KMEANS3", "KMEANS4",
    "W4A16-2:4", "W4A16-g32-2:4", "W3A16-2:4", "W8A16-2:4", "W8A8-2:4", "bf16-2:4", "fp16-2:4", "FP8-2:4",
)  # fmt: skip
EXACT_SCHEMES = (
    "fp32",
    "bf16",
    "fp16",
    "W4A16-g32",
    "W4A16-asym",
    "W8A16",
    "W3A16",
    "W2A16",
    "TERNARY",
    "BINARY",
    "FP8",
    "FP8_DYNAMIC",
    "NF4",
    "KMEANS3",
    "W4A16-2:4",
    "W8A16-2:4",
    "bf16-2:4",
)

_ROPE = tuple(10000.0 ** (-i / 32) for i in range(32))


def conformance_cases() -> tuple[OpCase, ...]:
    """What every backend must agree on; small, but with k = 2048 and 8192, odd sizes and heavy-tailed inputs."""
    cases = [OpCase("linear", 5, 256, 48, scheme, "fast") for scheme in FAST_SCHEMES]
    cases += [OpCase("linear", 5, 256, 48, scheme, "exact") for scheme in EXACT_SCHEMES]
    for scheme in ("W4A16", "W4A16-g32", "W8A8", "W8A16", "bf16", "W4A16-2:4", "W8A8-2:4", "bf16-2:4"):
        cases += [OpCase("linear", 2, columns, 40, scheme, "fast", "heavy") for columns in (2048, 8192)]
    for scheme, columns in (
        ("W4A16-channel", 704), ("W4A16-g32", 704), ("W4A16-g64", 704), ("W8A16", 172), ("W8A8", 172), ("W8A8", 899),
        ("W4A16", 896), ("W2A16", 96), ("W3A16", 96), ("TERNARY", 100), ("TERNARY-g8", 72),
        ("BINARY", 99), ("BINARY-g40", 200), ("FP8", 171), ("NF4-channel", 171),
        ("KMEANS2", 72), ("KMEANS3", 171), ("KMEANS4", 899),
        ("NF4-g40", 120), ("NF4-g32", 4192), ("FP8", 4192), ("bf16", 171), ("fp16", 171), ("W4A16-g8", 200),
        ("W4A16-g8-2:4", 200), ("W4A16-channel-2:4", 172), ("W8A8-2:4", 172), ("W8A16-2:4", 100),
        ("bf16-2:4", 172), ("W4A16-g40-2:4", 200),
    ):  # fmt: skip
        cases += [OpCase("linear", rows, columns, 37, scheme, "fast") for rows in (1, 11)]
    cases += [OpCase("linear", 3, 171, 37, "fp32", "exact"), OpCase("linear", 3, 8192, 8, "W4A16", "exact", "heavy")]
    for attributes in (a.Norm("rms", 64, 1e-6), a.Norm("rms", 192, 1e-5, 1.0), a.Norm("layer", 192, 1e-5)):
        cases.append(OpCase("norm", 3, 192, policy="exact", inputs="heavy", attributes=attributes))
    cases.append(OpCase("norm", 3, 195, 195, policy="exact", attributes=a.Norm("rms", 39, 1e-6)))
    cases.append(OpCase("norm", 3, 195, 195, policy="exact", attributes=a.Norm("layer", 65, 1e-6)))
    for style in ("half", "interleaved"):
        cases.append(OpCase("rope", 21, 256, policy="exact", attributes=a.Rope(128, 64, style, _ROPE)))
    for activation in get_args(a.Activation):
        cases.append(OpCase("gate", 3, 100, policy="exact", attributes=a.Gate(activation)))
    for gate in (a.Gate("gelu_sigmoid", 0.7, 1.0), a.Gate("silu", 0.5), a.Gate("silu", up_offset=-1.0)):
        cases.append(OpCase("gate", 3, 100, policy="exact", attributes=gate))
    for policy in ("exact", "fast"):
        for attention in (
            a.Attention(4, 2, 64, 0.125),
            a.Attention(4, 4, 40, 0.1, window=19),
            a.Attention(4, 1, 32, 0.2, softcap=5.0),
            a.Attention(4, 2, 24, 0.25, alibi_slopes=(0.5, 0.25, 0.125, 0.0625)),
        ):
            width = attention.heads * attention.head_size
            cases.append(OpCase("attention", 70, width, policy=policy, attributes=attention))
        for rows in (3, 70, 600):  # few rows, many, more than a partition of keys
            cases.append(
                OpCase("attention", rows, 128, policy=policy, attributes=a.Attention(4, 2, 32, 0.2, full=True))
            )
            sunk = a.Attention(4, 2, 32, 0.2, window=40)
            cases.append(OpCase("attention", rows, 128, 4, policy=policy, attributes=sunk))
    return (*cases, *_row_cases(), *_kv_cases(), *_step_cases())


def _row_cases() -> list[OpCase]:
    """The ops that are neither projections nor norms, rope, gates or attention."""
    cases = [OpCase("embed", 9, 96, 12, scheme, policy="exact") for scheme in ("fp32", "bf16", "W8A16", "W4A16-g32")]
    cases += [OpCase(kind, 5, 203, policy="exact", inputs="heavy") for kind in ("add", "gather")]
    cases.append(OpCase("add", 5, 203, 3, policy="exact"))
    cases.append(OpCase("scale", 5, 203, policy="exact", attributes=a.Scale(0.3)))
    cases.append(OpCase("softcap", 5, 203, policy="exact", attributes=a.Softcap(3.0)))
    for size, width in (
        (2, 22),
        (4, 20),
        (8, 24),
        (16, 48),
        (32, 96),
        (64, 192),
        (128, 640),
        (512, 1536),
        (2048, 2048),
    ):
        cases.append(OpCase("hadamard", 3, width, policy="exact", attributes=a.Hadamard(size)))
    cases.append(OpCase("hadamard", 5, 640, policy="exact", attributes=a.Hadamard(128), inputs="heavy"))
    return [*cases, *(OpCase("logits", 5, 256, 48, scheme, "fast") for scheme in ("W4A16", "W8A8", "bf16"))]


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


def _step_cases() -> list[OpCase]:
    """Steps that find keys and values of earlier ones: the last chunk of a prompt, and sequences side by side."""
    heads = a.Attention(4, 2, 32, 0.18)
    cases = []
    for policy, kv_cache in itertools.product(get_args(Policy), get_args(KVCache)[1:]):
        for rows, context, sequences in ((1, 300, 1), (3, 530, 3), (40, 261, 2)):
            case = OpCase("attention", rows, 128, policy=policy, attributes=heads, kv_cache=kv_cache)
            cases.append(replace(case, context=context, sequences=sequences))
    return cases


def speed_cases() -> tuple[OpCase, ...]:
    """The ops of a 1B model (Llama-3.2-1B's shape) from one row to a prefill chunk."""
    return (*_linear_speed(), *_attention_speed(), *_row_speed())


def _linear_speed() -> list[OpCase]:
    cases = []
    for scheme in ("W4A16", "W4A16-g32", "W8A16", "W8A8", "bf16"):
        for rows in (1, 4, 16, 512):
            cases.append(OpCase("linear", rows, 2048, 8192, scheme))
        cases.append(OpCase("linear", 1, 8192, 2048, scheme))
    cases += [OpCase("linear", rows, 2048, 8192, scheme, "exact") for scheme in ("fp32", "W4A16") for rows in (1, 64)]
    small = ("W2A16", "W3A16", "TERNARY", "BINARY")
    cases += [OpCase("linear", rows, 2048, 8192, scheme) for scheme in small for rows in (1, 4, 16, 64)]
    tables = ("KMEANS2", "KMEANS3", "KMEANS4")
    cases += [OpCase("linear", rows, 2048, 8192, scheme) for scheme in tables for rows in (1, 4, 16, 64)]
    cases += [OpCase("linear", rows, 2048, 8192, scheme) for scheme in ("NF4", "FP8") for rows in (1, 4, 16, 64, 512)]
    cases += [
        OpCase("linear", rows, 2048, 8192, f"{scheme}{SPARSE}")
        for scheme in ("W4A16", "W4A16-g32", "W8A8", "bf16")
        for rows in (1, 4, 16, 512)
    ]
    return [*cases, *(OpCase("logits", rows, 2048, 32768, "W8A16") for rows in (1, 16))]


def _attention_speed() -> list[OpCase]:
    """Decoding behind short and long contexts, alone and many at once; a prompt's first and its last chunk."""
    heads, width = a.Attention(32, 8, 64, 0.125), 2048
    cases = []
    for kv_cache in get_args(KVCache)[2:]:
        for rows, context, sequences in ((1, 511, 1), (1, 8191, 1), (16, 511, 16), (512, 0, 1), (512, 7680, 1)):
            case = OpCase("attention", rows, width, attributes=heads, kv_cache=kv_cache)
            cases.append(replace(case, context=context, sequences=sequences))
        cases += [OpCase("kv_write", rows, width, attributes=heads, kv_cache=kv_cache) for rows in (1, 512)]
    exact = OpCase("attention", 1, width, policy="exact", attributes=heads, context=8191)
    window = replace(heads, window=1024)
    return [*cases, exact, OpCase("attention", 1, width, attributes=window, context=8191)]


def _row_speed() -> list[OpCase]:
    cases = []
    for rows in (1, 512):
        cases += [OpCase("embed", rows, 2048, 32768, scheme) for scheme in ("bf16", "W8A16")]
        cases.append(OpCase("norm", rows, 2048, attributes=a.Norm("rms", 2048, 1e-5)))
        cases.append(OpCase("rope", rows, 2048, attributes=a.Rope(64, 64, "half", _ROPE)))
        cases.append(OpCase("gate", rows, 8192, attributes=a.Gate("silu")))
        cases += [OpCase("hadamard", rows, 8192, attributes=a.Hadamard(size)) for size in (64, 512, 8192)]
        cases += [OpCase("add", rows, 2048), OpCase("scale", rows, 2048, attributes=a.Scale(0.5))]
        cases.append(OpCase("gather", rows, 2048))
        cases += [OpCase("quantise", rows, 8192, 64, scheme) for scheme in ("W4A16", "W8A8")]
        cases.append(OpCase("cast", rows, 8192, 64, "bf16"))
    return [*cases, OpCase("softcap", 1, 128256, attributes=a.Softcap(30.0))]
