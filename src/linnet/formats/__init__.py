# SPDX-License-Identifier: Apache-2.0
"""Models on disk: Hugging Face safetensors directories, mapped and checked; compressed-tensors in and out."""

from linnet.formats.checkpoint import Checkpoint
from linnet.formats.header import TensorInfo
from linnet.formats.hub import resolve_model
from linnet.formats.writer import CheckpointWriter

__all__ = ["Checkpoint", "CheckpointWriter", "TensorInfo", "resolve_model"]
