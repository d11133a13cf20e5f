# SPDX-License-Identifier: Apache-2.0
"""A GGUF file as the Hugging Face directory it was made from: config, names, tensors."""

from linnet.formats.gguf.architectures import ARCHITECTURES, Architecture
from linnet.formats.gguf.config import architecture_of, config_of
from linnet.formats.gguf.files import GgufFiles
from linnet.formats.gguf.names import halved_rows, paired_rows, to_ggml, to_hugging_face

__all__ = [
    "ARCHITECTURES",
    "Architecture",
    "GgufFiles",
    "architecture_of",
    "config_of",
    "halved_rows",
    "paired_rows",
    "to_ggml",
    "to_hugging_face",
]
