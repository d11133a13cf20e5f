# SPDX-License-Identifier: Apache-2.0
"""Reads a checkpoint's text files with a bound on their size; damage is a CheckpointError naming the file.

Also texts that a user names, to calibrate or measure on; there a mistake is a ConfigError.
"""

import json
import lzma
from pathlib import Path
from typing import Any

from linnet.errors import CheckpointError, ConfigError
from linnet.gguf import GgufModel, gguf_of

TOKENIZER_BYTES = 256 << 20
CONFIG_BYTES = 16 << 20
TEMPLATE_BYTES = 1 << 20


def read_bytes(path: Path, limit_bytes: int) -> bytes:
    """The file's bytes. Raises CheckpointError when it is missing or larger than ``limit_bytes``."""
    try:
        size = path.stat().st_size
        if not path.is_file():
            raise CheckpointError(f"{path}: not a regular file")
        if size > limit_bytes:
            raise CheckpointError(f"{path}: {size} bytes; at most {limit_bytes} are accepted for this file")
        return path.read_bytes()
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read ({error.strerror or error})") from None


def read_text(path: Path, limit_bytes: int) -> str:
    """The file's text. Raises CheckpointError as ``read_bytes``, and when it is not UTF-8."""
    try:
        return read_bytes(path, limit_bytes).decode("utf-8")
    except UnicodeDecodeError as error:
        raise CheckpointError(f"{path}: not UTF-8 text (byte {error.start})") from None


def read_json_object(path: Path, limit_bytes: int = CONFIG_BYTES) -> dict[str, Any]:
    """The file's JSON object. Raises CheckpointError for anything else."""
    text = read_text(path, limit_bytes)
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        reason = "nested too deeply" if isinstance(error, RecursionError) else str(error)
        raise CheckpointError(f"{path}: not valid JSON ({reason})") from None
    if not isinstance(value, dict):
        raise CheckpointError(f"{path}: a JSON object is expected, found {type(value).__name__}")
    return value


def optional_json_object(path: Path, limit_bytes: int = CONFIG_BYTES) -> dict[str, Any]:
    """As ``read_json_object``; a file that does not exist is an empty object."""
    return read_json_object(path, limit_bytes) if path.exists() else {}


def tokenizer_json_bytes(model: Path) -> int:
    """Bytes of a model directory's tokenizer.json, 0 if it has none; of a GGUF file about what it would have.

    Measured: twice the file's metadata, five times where merges are not listed and have to be worked out.
    """
    file = gguf_of(model)
    if file is None:
        path = model / "tokenizer.json"
        return path.stat().st_size if path.is_file() else 0
    with GgufModel(file) as opened:
        metadata_bytes = min((tensor.offset for tensor in opened.parts[0].tensors.values()), default=0)
        return metadata_bytes * (2 if "tokenizer.ggml.merges" in opened.metadata else 5)


def read_corpus(path: Path, what: str = "text") -> str:
    """A UTF-8 text that the user named, unpacked if its name ends in .xz.

    Raises ConfigError, which calls it ``what``, when it cannot be read.
    """
    try:
        data = path.read_bytes()
        return (lzma.decompress(data) if path.suffix == ".xz" else data).decode("utf-8")
    except OSError as error:
        raise ConfigError(f"the {what} {path} cannot be read: {error.strerror or error}") from error
    except lzma.LZMAError as error:
        raise ConfigError(f"the {what} {path} is not an xz file: {error}") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"the {what} {path} is not UTF-8 (byte {error.start})") from error
