# SPDX-License-Identifier: Apache-2.0
"""docs/support.md: which stored forms run where, asked of the program that would be executed.

    python tools/docs/support_matrix.py [--check]

A small Llama has one linear stored in the form; numerics are chosen, and each backend is asked whether it executes
every op of the result. --check: exit 1 unless the page says just this.
"""

import argparse
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from linnet.backends.interface import Policy
from linnet.backends.select import choose_backend, refused_ops
from linnet.errors import UnsupportedError
from linnet.models.build import build_program
from linnet.models.families import arch_spec
from linnet.program.choose_numerics import choose_numerics
from linnet.program.program import DenseType, Program
from linnet.schemes import LinearScheme, Scheme, parse_scheme
from linnet.schemes.layouts import bits_per_weight
from linnet.schemes.layouts.gguf import GGUF_LAYOUTS

sys.path.insert(0, str(Path(__file__).resolve().parent))
from family_table import section

PAGE = Path(__file__).resolve().parents[2] / "docs" / "support.md"
COLUMNS = 512
CONFIG: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "hidden_size": COLUMNS,
    "intermediate_size": COLUMNS,
    "num_hidden_layers": 1,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "vocab_size": 64,
    "rms_norm_eps": 1e-5,
    "tie_word_embeddings": True,
}
WEIGHT = "model.layers.0.mlp.up_proj.weight"
BACKENDS = ("reference", "cpu")
POLICIES: tuple[Policy, ...] = ("fast", "exact")

COMPRESSED_TENSORS = (
    "W8A16", "W8A16-asym", "W4A16", "W4A16-asym", "W4A16-channel", "W3A16", "W2A16", "W8A8", "W4A8", "W4A4", "FP8",
    "FP8_DYNAMIC", "FP8_STATIC",
)  # fmt: skip
DENSE: tuple[tuple[DenseType, float], ...] = (("fp32", 32.0), ("bf16", 16.0), ("fp16", 16.0))
OWN = ("NF4", "TERNARY", "BINARY")


@dataclass(frozen=True)
class Row:
    """One form of a weight, and perhaps of its input."""

    published: str
    stored: str
    scheme: LinearScheme | DenseType
    bits: float


def rows() -> Iterator[Row]:
    """Every form that a reader of formats/forms can give."""
    shape = (COLUMNS, COLUMNS)
    yield from (Row("plain safetensors, GGUF", name, name, bits) for name, bits in DENSE)
    for method, names in (("compressed-tensors", COMPRESSED_TENSORS), ("linnet", OWN)):
        for name in names:
            scheme = parse_scheme(name).linear
            yield Row(method, name, scheme, bits_per_weight(scheme, shape))
    static = LinearScheme(Scheme("int8", "channel"), Scheme("int8", "tensor", symmetric=False))
    yield Row(
        "compressed-tensors", "W8A8, static activations with a zero point", static, bits_per_weight(static, shape)
    )
    yield from packed_floats_and_zeros()
    rows_of_fp8 = LinearScheme(
        Scheme("fp8_e4m3", "channel", scale_dtype="fp32"), parse_scheme("FP8_DYNAMIC").linear.input
    )
    yield Row("fbgemm fp8", "one scale per row", rows_of_fp8, bits_per_weight(rows_of_fp8, shape))
    blocks = Scheme("fp8_e4m3", "block", block=(128, 128), scale_dtype="fp32")
    by_blocks = LinearScheme(blocks, Scheme("fp8_e4m3", "group", 128, dynamic=True))
    yield Row("compressed-tensors, fp8", "fp8 in blocks of 128 × 128", by_blocks, bits_per_weight(by_blocks, shape))
    for bits in (2, 3, 4, 8):
        scheme = LinearScheme(Scheme(_element(f"int{bits}"), "group", 128, symmetric=False, scale_dtype="fp16"))
        yield Row(
            "GPTQ, AWQ" if bits == 4 else "GPTQ", f"{bits} bits, zero points", scheme, bits_per_weight(scheme, shape)
        )
    for element, name in (("nf4", "NF4"), ("fp4_e2m1", "FP4")):
        scheme = LinearScheme(Scheme(_element(element), "group", 64, scale_dtype="fp32"))
        yield Row("bitsandbytes", name, scheme, bits_per_weight(scheme, shape))
    yield from hqq_and_quanto()
    ternary = LinearScheme(Scheme("ternary", "tensor"), Scheme("int8", "token", dynamic=True, narrow_range=True))
    yield Row("BitNet", "packed codes", ternary, 2.0)
    experts = LinearScheme(Scheme("fp4_e2m1", "group", 32, scale_dtype="bf16"))
    yield Row("gpt-oss (its experts)", "MXFP4", experts, 4.25)
    for name, layout in GGUF_LAYOUTS.items():
        yield Row("GGUF", name, layout.scheme, layout.kind.bits_per_weight)


def packed_floats_and_zeros() -> Iterator[Row]:
    """What else compressed-tensors packs; scales of 4-bit floats take 8 bits in the files."""
    for size, name in ((16, "nvfp4-pack-quantized"), (32, "mxfp4-pack-quantized")):
        scheme = LinearScheme(Scheme("fp4_e2m1", "group", size, scale_dtype="fp32" if size == 16 else "bf16"))
        yield Row("compressed-tensors", name, scheme, 4 + 8 / size)
    for name in ("W8A8", "FP8_DYNAMIC"):
        whole = parse_scheme(name).linear
        half = replace(whole, weight=replace(whole.weight, sparsity="2:4"))
        yield Row(
            "compressed-tensors", f"sparse-24-bitmask over {name}", half, bits_per_weight(half, (COLUMNS, COLUMNS))
        )


def hqq_and_quanto() -> Iterator[Row]:
    """Bits per weight as in the files, whose scales, zeros and shifts take 16."""
    for bits in (8, 4, 3, 2, 1):
        words = 3.2 if bits == 3 else bits  # ten codes of three bits to an int32
        plural = "" if bits == 1 else "s"
        yield Row("HQQ", f"{bits} bit{plural}, axis 1", _with_minimums(max(bits, 2), 64, "fp32"), words + 32 / 64)
    for bits in (4, 2):
        yield Row("quanto", f"qint{bits}", _with_minimums(bits, 128, "bf16"), bits + 32 / 128)
    for element, name in (("int8", "qint8"), ("fp8_e4m3", "qfloat8")):
        yield Row("quanto", name, LinearScheme(Scheme(_element(element), "channel")), 8 + 16 / COLUMNS)


def _with_minimums(bits: int, size: int, kind: str) -> LinearScheme:
    element, dtype = _element(f"int{bits}"), _element(kind)
    return LinearScheme(Scheme(element, "group", size, symmetric=False, scale_dtype=dtype, minimum=True))


def _element(name: str) -> Any:
    """A name as the type of a Scheme's field, which is a literal."""
    return name


def arithmetic(program: Program) -> str:
    """What the linear's input is when it is multiplied."""
    values = {value.name: value for value in program.values}
    weights = {weight.name: weight.ref.checkpoint_name for weight in program.weights}
    [op] = [op for op in program.ops if op.kind == "linear" and weights[op.weights[0]] == WEIGHT]
    dtype = values[op.inputs[0]].dtype
    if not isinstance(dtype, Scheme):
        return str(dtype)
    shared = f"groups of {dtype.group_size}" if dtype.group_size else dtype.granularity
    return f"{dtype.element}, {shared}{'' if dtype.dynamic else ', static'}"


def answer(row: Row, policy: Policy) -> tuple[str, dict[str, str]]:
    """(what the input is, backend -> yes or the refusal)."""
    built = build_program(arch_spec(CONFIG), lambda name: row.scheme if name == WEIGHT else "fp32")
    try:
        program = choose_numerics(built, policy)
    except UnsupportedError as error:
        return "–", dict.fromkeys(BACKENDS, str(error))
    found = {}
    for name in BACKENDS:
        reasons = refused_ops(choose_backend(name), program)
        found[name] = "yes" if not reasons else "no: " + "; ".join(reasons)
    return arithmetic(program), found


HEAD = """# What runs where

Made by `python tools/docs/support_matrix.py`, which asks the program that would be executed. *fast* and *exact*: what a
linear's input is when it meets the weight ([backends.md](backends.md) says how). The cpu backend's answer holds for
every tier of instructions; which kernel it takes, every report names.

| published as | stored as | bits per weight | fast | exact | reference | cpu |
|---|---|---|---|---|---|---|
"""


def line(row: Row) -> str:
    """One row of the table; two answers where the policies' differ."""
    (fast, by_fast), (exact, by_exact) = (answer(row, policy) for policy in POLICIES)
    both = []
    for name in BACKENDS:
        same = by_fast[name] == by_exact[name]
        both.append(by_fast[name] if same else f"{by_fast[name]} / {by_exact[name]}")
    return f"| {row.published} | {row.stored} | {row.bits:.2f} | {fast} | {exact} | {' | '.join(both)} |\n"


def page() -> str:
    """The whole page."""
    return HEAD + "".join(map(line, rows())) + section()


def main() -> None:
    """Write the page, or with --check compare it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true")
    made = page()
    if parser.parse_args().check:
        sys.exit(PAGE.read_text(encoding="utf-8") != made)
    PAGE.write_text(made, encoding="utf-8")


if __name__ == "__main__":
    main()
