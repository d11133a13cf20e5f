# SPDX-License-Identifier: Apache-2.0
"""The container of GGUF files: metadata, tensor table, mapped bytes. What they mean is said in formats and text."""

from linnet.gguf.types import NAMED_TYPES, TENSOR_TYPES, TensorType

__all__ = ["NAMED_TYPES", "TENSOR_TYPES", "TensorType"]
