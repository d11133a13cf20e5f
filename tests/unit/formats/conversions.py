# SPDX-License-Identifier: Apache-2.0
"""The bundled model, quantised and converted: what the tests of conversion begin with."""

from pathlib import Path
from typing import Any

import linnet.demo
from linnet.formats import Checkpoint, CheckpointWriter
from linnet.formats.convert import Conversion, numbers_hash, to_gguf
from linnet.schemes import LinearScheme, Scheme, quantize_weight

DEMO = Path(linnet.demo.__file__).parent / "model"
NOTHING: dict[str, Any] = {}


def gguf(source: Path, target: Path, wanted: str, **options: Any) -> Conversion:
    with Checkpoint.open(source) as checkpoint:
        return to_gguf(checkpoint, target, wanted, NOTHING, threads=2, **options)


def quantised(directory: Path, scheme: Scheme) -> Path:
    """The bundled model with its linears rounded to ``scheme``, the embedding as it is."""
    with Checkpoint.open(DEMO) as source, CheckpointWriter(directory) as writer:
        for name in source.names():
            array = source.tensor(name)
            if array.ndim == 2 and ".layers." in name:
                writer.add_packed(name.removesuffix(".weight"), quantize_weight(array, LinearScheme(scheme)))
            else:
                writer.add(name, array)
        writer.publish(source.config)
    return directory


def hash_of(path: Path) -> str:
    with Checkpoint.open(path) as checkpoint:
        return numbers_hash(checkpoint)
