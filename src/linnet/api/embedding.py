# SPDX-License-Identifier: Apache-2.0
"""Embeddings: of a finished sample, cut and normalised as asked for."""

import numpy as np

from linnet.api.generation import Sample
from linnet.errors import LinnetError


def embedding_of(sample: Sample, normalize: bool, dimensions: int | None = None) -> np.ndarray:
    """float32 [hidden], or the first ``dimensions`` of it; of length 1 where ``normalize``. Raises LinnetError."""
    sample.raise_error()
    whole = sample.stream.embedding
    if whole is None:
        raise LinnetError(f"the embedding ended with {sample.stream.finish_reason}")
    part = whole[:dimensions]
    length = float(np.sqrt(np.sum(np.square(part, dtype=np.float64))))
    if not normalize or length == 0.0:
        return part
    unit: np.ndarray = (part / length).astype(np.float32)
    return unit
