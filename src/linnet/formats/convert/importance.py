# SPDX-License-Identifier: Apache-2.0
"""What a squared error in each column counts, from llama.cpp's importance matrix: the mean square of every input.

``llama-imatrix`` writes a GGUF file of ``NAME.in_sum2`` (sums of squares) and ``NAME.counts`` (rows summed), by ggml's
names of the weights. Source: llama.cpp's tools/imatrix.
"""

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from linnet.errors import CheckpointError
from linnet.formats.gguf import to_ggml
from linnet.formats.gguf.architectures import Architecture
from linnet.gguf import GgufModel

Array = npt.NDArray[Any]
_SUMS, _COUNTS = ".in_sum2", ".counts"


def read_importance(path: Path, architecture: Architecture) -> tuple[Callable[[str], Array | None], str]:
    """Module -> fp32 [columns] or None where the file says nothing of it; and a digest of all numbers.

    CheckpointError: not such a file, or numbers that no mean square can be.
    """
    found: dict[str, Array] = {}
    digest = hashlib.sha256()
    with GgufModel(path) as model:
        for name in model.tensors:
            if not name.endswith(_SUMS):
                continue
            stem = name.removesuffix(_SUMS)
            sums = np.array(model.view(name), np.float32).reshape(-1)
            counts = float(np.max(model.view(stem + _COUNTS), initial=0)) if stem + _COUNTS in model.tensors else 1.0
            if not (np.isfinite(sums).all() and (sums >= 0).all()) or counts < 0:
                raise CheckpointError(f"{path}: {name} holds what no mean of squares can be")
            found[stem] = sums / np.float32(max(counts, 1.0))
            digest.update(name.encode() + found[stem].tobytes())
    if not found:
        raise CheckpointError(f"{path}: no importance matrix: it has no tensor *{_SUMS}, as llama.cpp writes them")

    def of(module: str) -> Array | None:
        named = to_ggml(architecture, f"{module}.weight")
        return None if named is None else found.get(named.name)

    return of, digest.hexdigest()
