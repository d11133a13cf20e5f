# SPDX-License-Identifier: Apache-2.0
"""QuaRot's rotation of the residual stream, folded into the weights: outliers are spread over all columns.

Ashkboos et al. 2024, "QuaRot: Outlier-Free 4-Bit Inference in Rotated LLMs", section 4, stage 1a. With an orthogonal Q
the norms' gains move into the weights that read them, then embed' = embed Q, reader' = reader diag(gain) Q and
writer' = Q^T writer: RMS norms without gains commute with Q, so the function stays. Nothing is computed at run time.
Every changed tensor is a function of the source's own, computed when it is read: no second copy of the model is made.
"""

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import ClassVar

import msgspec
import numpy as np
import torch

from linnet.backends.reference.weights import to_torch
from linnet.compress.transforms.hadamard import rotation
from linnet.compress.transforms.stream import Stream, stream_of
from linnet.models.load import ModelSource
from linnet.schemes.scheme import LinearScheme


class QuarotOptions(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Nothing to choose; the signs are drawn with the recipe's seed."""


class Quarot:
    """One random Hadamard matrix for the whole stream."""

    Options: ClassVar[type] = QuarotOptions

    def __init__(self, options: QuarotOptions) -> None:
        pass

    def check(self, source: ModelSource) -> None:
        """See ModelTransform.check."""
        width = source.spec.hidden_size
        stream_of(source.program, width)
        rotation(width, 0, "the hidden size")

    def apply(self, source: ModelSource, schemes: Mapping[str, LinearScheme], seed: int) -> ModelSource:
        """See ModelTransform.apply."""
        width = source.spec.hidden_size
        matrix, stream = rotation(width, seed, "the hidden size"), stream_of(source.program, width)
        weights = _Rotation(stream, matrix, schemes)
        return replace(source, checkpoint=source.checkpoint.rewritten(weights.rewrite))


class _Rotation:
    """Rewrites tensors. Those that will be packed are given in fp32, others in the type they have."""

    def __init__(self, stream: Stream, matrix: torch.Tensor, schemes: Mapping[str, LinearScheme]) -> None:
        self._stream, self._matrix, self._schemes = stream, matrix, schemes

    def rewrite(self, name: str, view: Callable[[str], np.ndarray]) -> np.ndarray | None:
        """See formats.rewritten.Rewrite."""
        rotated = self._rotated(name, view)
        if rotated is None:
            return None
        packed = name.removesuffix(".weight") in self._schemes
        return rotated.numpy() if packed else rotated.numpy().astype(view(name).dtype)

    def _rotated(self, name: str, view: Callable[[str], np.ndarray]) -> torch.Tensor | None:
        stream = self._stream
        if name in stream.gains:
            return torch.full(view(name).shape, 1.0 - stream.gains[name])
        if name in stream.added or name in stream.writers:
            return self._matrix.T @ to_torch(view(name))
        if name in stream.tables:
            return to_torch(view(name)) @ self._matrix
        if name in stream.readers:
            gain = stream.readers[name]
            return (to_torch(view(name)) * (to_torch(view(gain)) + stream.gains[gain])) @ self._matrix
        return None
