# SPDX-License-Identifier: Apache-2.0
"""Random blocks of any GGUF type, scales of every kind a file may hold among them."""

from typing import Any

import numpy as np

from linnet.schemes.gguf_blocks import BlockType

EXTREME = np.array([6e-8, -6e-8, 6.1e-5, 65504, -65504, 0.0, -0.0, 1.0, -0.013, 5.96e-8], np.float16)
"""Smallest denormal, smallest normal, largest, zeros of both signs."""


def random_blocks(kind: BlockType, rows: int, blocks: int, seed: int = 0, *, extreme: bool = True) -> Any:
    """uint8 [rows, blocks, block bytes]: random codes, finite scales, a third of them extreme or none."""
    generator = np.random.default_rng(seed)
    stored = generator.integers(0, 256, (rows, blocks, kind.nbytes), dtype=np.uint8)
    block = stored.reshape(-1, kind.nbytes).view(kind.fields)[:, 0]
    for field in ("scale", "minimum"):
        if field in (kind.fields.names or ()):
            block[field] = _scales(kind, len(block), generator, extreme)
    return stored


def _scales(kind: BlockType, count: int, generator: np.random.Generator, extreme: bool) -> Any:
    if kind.scale_dtype == "e8m0":
        exponents = generator.integers(0, 255, count) if extreme else generator.integers(119, 122, count)
        return exponents.astype(np.uint8)
    usual = generator.normal(0, 0.01, count).astype(np.float16)
    if not extreme:
        return usual
    return np.where(generator.random(count) < 1 / 3, generator.choice(EXTREME, count), usual)
