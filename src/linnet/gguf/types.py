# SPDX-License-Identifier: Apache-2.0
"""The tensor types of ggml: number in the file, name, and how many elements share how many bytes.

Source: ggml.h (enum ggml_type) and ggml-common.h (the block structs). What the bytes of a block mean is no business of
this room: ``schemes.gguf_blocks``.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class TensorType:
    """One type: rows are sequences of blocks of ``block_elements`` numbers in ``block_bytes`` bytes.

    A type with one element per block is plain numbers; its row may have any length.
    """

    id: int
    name: str
    block_elements: int
    block_bytes: int

    @property
    def plain(self) -> bool:
        """Whether it is an array of plain numbers, not of blocks."""
        return self.block_elements == 1

    @property
    def bits_per_element(self) -> float:
        """All bits, scales included, per number."""
        return 8 * self.block_bytes / self.block_elements

    def row_bytes(self, columns: int) -> int:
        """Bytes of a row; ``columns`` must be whole blocks."""
        if columns % self.block_elements:
            raise ValueError(f"{columns} columns are not whole blocks of {self.block_elements} ({self.name})")
        return columns // self.block_elements * self.block_bytes


TENSOR_TYPES: dict[int, TensorType] = {
    number: TensorType(number, name, elements, nbytes)
    for number, name, elements, nbytes in (
        (0, "F32", 1, 4),
        (1, "F16", 1, 2),
        (2, "Q4_0", 32, 18),
        (3, "Q4_1", 32, 20),
        (6, "Q5_0", 32, 22),
        (7, "Q5_1", 32, 24),
        (8, "Q8_0", 32, 34),
        (9, "Q8_1", 32, 36),
        (10, "Q2_K", 256, 84),
        (11, "Q3_K", 256, 110),
        (12, "Q4_K", 256, 144),
        (13, "Q5_K", 256, 176),
        (14, "Q6_K", 256, 210),
        (15, "Q8_K", 256, 292),
        (16, "IQ2_XXS", 256, 66),
        (17, "IQ2_XS", 256, 74),
        (18, "IQ3_XXS", 256, 98),
        (19, "IQ1_S", 256, 50),
        (20, "IQ4_NL", 32, 18),
        (21, "IQ3_S", 256, 110),
        (22, "IQ2_S", 256, 82),
        (23, "IQ4_XS", 256, 136),
        (24, "I8", 1, 1),
        (25, "I16", 1, 2),
        (26, "I32", 1, 4),
        (27, "I64", 1, 8),
        (28, "F64", 1, 8),
        (29, "IQ1_M", 256, 56),
        (30, "BF16", 1, 2),
        (34, "TQ1_0", 256, 54),
        (35, "TQ2_0", 256, 66),
        (39, "MXFP4", 32, 17),
    )
}
"""By number in the file. 4, 5, 31 to 33 and 36 to 38 were withdrawn by ggml."""

NAMED_TYPES: dict[str, TensorType] = {kind.name: kind for kind in TENSOR_TYPES.values()}
"""By name, as ggml and its tools print it."""
