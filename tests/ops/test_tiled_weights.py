# SPDX-License-Identifier: Apache-2.0
"""Weights that are read as tiles only, every block type of GGUF among them: they mean what ``dequantize`` says bit for
bit, int8 rows meet them as exact arithmetic on the same numbers does, and a row's bits depend on nothing else."""

import ml_dtypes
import numpy as np
import pytest

pytest.importorskip("linnet.backends.cpu._native", reason="the native extension is not built")

from tiled_weights import multiply, tiled

from linnet.backends.cpu import _native, tiles
from linnet.program.choose_numerics import activation_scheme
from linnet.program.program import Weight, WeightRef
from linnet.schemes import codecs
from linnet.schemes.layouts import PACK_MINIMUM
from linnet.schemes.layouts.gguf import BLOCKS, GGUF_LAYOUTS
from linnet.schemes.packed_weight import PackedWeight, quantize_weight
from linnet.schemes.scheme import LinearScheme, Scheme

INTEGERS = sorted(name for name, layout in GGUF_LAYOUTS.items() if layout.kind.codebook is None)
OWN = {
    "int4-asym": Scheme("int4", "group", 32, symmetric=False, scale_dtype="fp8_e4m3"),
    "ternary": Scheme("ternary", "group", 128),
    "ternary-channel": Scheme("ternary", "channel"),
    "binary": Scheme("binary", "group", 32),
    "binary-channel": Scheme("binary", "channel", scale_dtype="fp32"),
    "int8-block": Scheme("int8", "block", block=(128, 128), scale_dtype="fp8_e4m3"),
}
"""Scales, or codes, that no kernel reads where they lie."""
MINIMUMS = {
    f"int{bits}-minimum": Scheme(element, "group", size, symmetric=False, scale_dtype=kind, minimum=True)
    for bits, element, size, kind in (
        (2, "int2", 64, "bf16"), (3, "int3", 16, "fp32"), (4, "int4", 128, "fp16"), (8, "int8", 64, "fp32"),
    )
}  # fmt: skip
"""What HQQ and optimum-quanto store."""
ALL = (*GGUF_LAYOUTS, *OWN, *MINIMUMS)


def random_weight(name: str, rows: int, columns: int, seed: int) -> PackedWeight:
    """Random blocks of a GGUF type, their scales finite; or a random weight rounded to a scheme of ours."""
    random = np.random.default_rng(seed)
    if name in OWN:
        return quantize_weight(random.standard_normal((rows, columns)).astype(np.float32), LinearScheme(OWN[name]))
    if name in MINIMUMS:
        scheme = LinearScheme(MINIMUMS[name])
        stored = PACK_MINIMUM.stored(scheme, (rows, columns))
        words, scales = stored["weight_packed"].shape, stored["weight_scale"].shape
        kind = codecs.FLOAT_DTYPES[scheme.weight.scale_dtype]
        arrays = {
            "weight_packed": random.integers(-(2**31), 2**31, words, dtype=np.int32),
            "weight_scale": random.standard_normal(scales).astype(kind),
            "weight_minimum": random.standard_normal(scales).astype(kind),
        }
        return PackedWeight(scheme, (rows, columns), PACK_MINIMUM, arrays)
    layout = GGUF_LAYOUTS[name]
    blocks = random.integers(0, 256, (rows * columns // layout.kind.columns, layout.kind.nbytes), dtype=np.uint8)
    fields = blocks.view(layout.kind.fields)[:, 0]
    for field in ("scale", "minimum"):
        if field in (layout.kind.fields.names or ()):
            if layout.kind.scale_dtype == "e8m0":
                fields[field] = random.integers(110, 130, len(fields))
            else:
                fields[field] = random.standard_normal(len(fields)) / 64
    if name == "TQ1_0":  # five digits to a byte: 243 of them mean something
        fields["fives"] %= 243
    if name == "TQ2_0":  # three of four values mean something
        fields["codes"] &= ~((fields["codes"] & 0x55) << 1) & 0xFF
    return PackedWeight(layout.scheme, (rows, columns), layout, {BLOCKS: blocks.reshape(rows, -1)})


@pytest.mark.parametrize("isa", _native.available_isas())
@pytest.mark.parametrize("name", sorted(ALL))
def test_tiles_mean_what_dequantize_says(name: str, isa: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tiles, "CHUNK_CODES", 1)  # several pieces
    stored = random_weight(name, 300, 512, 1)
    view, _alive = tiled(stored, isa)
    found = multiply(isa, view, _native.InputType.fp32, 512, np.eye(512, dtype=np.float32)).T
    assert (found + 0.0 == stored.dequantize() + 0.0).all()


@pytest.mark.parametrize("isa", _native.available_isas())
@pytest.mark.parametrize("name", ["IQ4_NL", "IQ4_XS", "MXFP4"])
def test_codebooks_meet_bf16_rows_rounded_to_bf16(name: str, isa: str) -> None:
    stored = random_weight(name, 70, 512, 2)
    view, _alive = tiled(stored, isa)
    found = multiply(isa, view, _native.InputType.bf16, 512, np.eye(512, dtype=np.float32)).T
    assert (found + 0.0 == stored.dequantize().astype(ml_dtypes.bfloat16).astype(np.float32) + 0.0).all()


@pytest.mark.parametrize("isa", _native.available_isas())
@pytest.mark.parametrize("name", [*INTEGERS, *OWN, *MINIMUMS])
def test_int8_rows(name: str, isa: str) -> None:
    """Against fp64 on the codes; and any row alone = in any batch = however outputs are split."""
    for seed, columns in enumerate((256, 768, 2048)):
        random = np.random.default_rng(seed)
        stored = random_weight(name, int(random.integers(1, 150)), columns, seed)
        rows = int(random.integers(2, 40))
        chosen = activation_scheme(Weight("w", WeightRef("w"), stored.shape, stored.scheme), "fast")
        assert isinstance(chosen, Scheme)
        assert chosen.group_size is not None
        size = chosen.group_size
        view, _alive = tiled(stored, isa)
        assert _native.refuse_linear(isa, view, _native.InputType.int8, size) is None
        x = (random.standard_normal((rows, columns)) * np.exp(random.standard_normal((rows, columns)))).astype(
            np.float32
        )
        grouped = x.reshape(rows, -1, size)
        scales = np.abs(grouped).max(2, keepdims=True) / np.float32(127.5)
        rounded = (np.clip(np.rint(grouped / scales), -128, 127) * scales.astype(np.float64)).reshape(rows, columns)
        wanted = rounded @ stored.dequantize().astype(np.float64).T
        whole = multiply(isa, view, _native.InputType.int8, size, x)
        assert ((whole - wanted) ** 2).sum() <= 1e-11 * (wanted**2).sum()
        for _ in range(6):
            first = int(random.integers(0, rows))
            last = int(random.integers(first + 1, rows + 1))
            part = multiply(isa, view, _native.InputType.int8, size, x[first:last], int(random.integers(1, 5)))
            assert (part.view(np.uint32) == whole[first:last].view(np.uint32)).all(), f"rows {first} to {last}"
