# SPDX-License-Identifier: Apache-2.0
"""The container of GGUF files: metadata, tensor table, mapped bytes. What they mean is said in formats and text."""

from linnet.gguf.container import PLAIN_DTYPES, GgufPart, is_gguf
from linnet.gguf.metadata import Metadata, shown
from linnet.gguf.model import GgufModel, gguf_of, split_set
from linnet.gguf.table import GgufTensor
from linnet.gguf.types import NAMED_TYPES, TENSOR_TYPES, TensorType
from linnet.gguf.writer import GgufWriter, PlannedTensor, file_bytes

__all__ = [
    "NAMED_TYPES",
    "PLAIN_DTYPES",
    "TENSOR_TYPES",
    "GgufModel",
    "GgufPart",
    "GgufTensor",
    "GgufWriter",
    "Metadata",
    "PlannedTensor",
    "TensorType",
    "file_bytes",
    "gguf_of",
    "is_gguf",
    "shown",
    "split_set",
]
