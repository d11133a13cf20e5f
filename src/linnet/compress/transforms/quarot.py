# SPDX-License-Identifier: Apache-2.0
"""QuaRot's rotation of the residual stream, folded into the weights: outliers are spread over all columns.

Ashkboos et al. 2024, "QuaRot: Outlier-Free 4-Bit Inference in Rotated LLMs", section 4, stage 1a. With an orthogonal Q
the norms' gains move into the weights that read them, then embed' = embed Q, reader' = reader diag(gain) Q and
writer' = Q^T writer: RMS norms without gains commute with Q, so the function stays. Nothing of this is computed at run
time. With ``values`` the channels of each head's values are rotated too, which their maker and reader take (stage 1c).
With ``online`` the input of down_proj is rotated at run time, and down_proj takes the inverse; with ``heads`` that of
o_proj, across heads; with ``keys`` so are queries and keys, behind their positions (see online.py).
Every changed tensor is a function of the source's own, computed when it is read: no second copy of the model is made.
"""

import logging
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import ClassVar

import msgspec
import numpy as np
import torch

from linnet.backends.reference.ops import hadamard
from linnet.backends.reference.weights import to_torch
from linnet.compress.transforms.hadamard import rotation
from linnet.compress.transforms.online import as_rotations, attentions, down_projections, output_projections
from linnet.compress.transforms.stream import Stream, stream_of
from linnet.compress.transforms.values import Values, values_of
from linnet.formats.rewritten import Rewritten
from linnet.models.load import ModelSource, load_model
from linnet.models.spec import ArchSpec
from linnet.schemes.scheme import LinearScheme

logger = logging.getLogger(__name__)
UNTIED = {"tie_word_embeddings": False}


class QuarotOptions(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The signs are drawn with the recipe's seed. ``values``: rotate those of attention too, head by head. At run time:
    ``online`` rotates what down_proj reads, ``heads`` what o_proj reads, across heads, ``keys`` queries and keys behind
    their positions."""

    values: bool = False
    online: bool = False
    heads: bool = False
    keys: bool = False


class Quarot:
    """One random Hadamard matrix for the whole stream."""

    Options: ClassVar[type] = QuarotOptions

    def __init__(self, options: QuarotOptions) -> None:
        self._options = options

    def prepare(self, source: ModelSource) -> ModelSource:
        """See ModelTransform.prepare. A head tied to the embedding becomes one of its own, since the last norm's gain
        moves into the head alone."""
        spec = source.spec
        if spec.tied_head:
            source = load_model(
                source.checkpoint.rewritten(lambda *_: None, Rewritten(_own_head(spec), settings=UNTIED))
            )
            logger.warning(
                "%s is tied to %s; the result gets a head of its own (%.0f MiB more), since a rotation folds the last "
                "norm's gain into it",
                *(spec.head, spec.embedding, source.checkpoint.info(f"{spec.head}.weight").nbytes / 2**20),
            )
        stream_of(source.program, spec.hidden_size)
        rotation(spec.hidden_size, 0, "the hidden size")
        if self._options.values:
            self._heads(source, 0)
        rotations = as_rotations(source, self._inputs(source), attentions(source) if self._options.keys else {})
        if not rotations:
            return source
        return load_model(source.checkpoint.rewritten(lambda *_: None, Rewritten(rotations=rotations)))

    def apply(self, source: ModelSource, schemes: Mapping[str, LinearScheme], seed: int) -> ModelSource:
        """See ModelTransform.apply."""
        width = source.spec.hidden_size
        matrix, stream = rotation(width, seed, "the hidden size"), stream_of(source.program, width)
        weights = _Rotation(stream, matrix, schemes, *self._heads(source, seed), self._inputs(source))
        checkpoint, head = source.checkpoint, f"{source.spec.head}.weight"
        copies = {} if head in checkpoint else _own_head(source.spec)
        return replace(source, checkpoint=checkpoint.rewritten(weights.rewrite, Rewritten(copies)))

    def _inputs(self, source: ModelSource) -> dict[str, int]:
        """What takes the inverse of a rotation of its input at run time -> channels of its runs."""
        downs = down_projections(source) if self._options.online else {}
        return downs | (output_projections(source) if self._options.heads else {})

    def _heads(self, source: ModelSource, seed: int) -> tuple[Values, dict[int, torch.Tensor]]:
        """Where values pass, and a matrix for each size of a head."""
        values = values_of(source.program, self._inputs(source)) if self._options.values else Values({}, {})
        return values, {size: rotation(size, seed, "a head's size") for size in set(values.readers.values())}


def _own_head(spec: ArchSpec) -> dict[str, str]:
    return {f"{spec.head}.weight": f"{spec.embedding}.weight"}


class _Rotation:
    """Rewrites tensors. Those that will be packed are given in fp32, others in the type they have."""

    def __init__(
        self,
        stream: Stream,
        matrix: torch.Tensor,
        schemes: Mapping[str, LinearScheme],
        values: Values,
        heads: Mapping[int, torch.Tensor],
        inputs: Mapping[str, int],
    ) -> None:
        self._stream, self._matrix, self._schemes = stream, matrix, schemes
        self._values, self._heads, self._inputs = values, heads, inputs

    def rewrite(self, name: str, view: Callable[[str], np.ndarray]) -> np.ndarray | None:
        """See formats.rewritten.Rewrite."""
        rotated = self._rotated_values(name, view, self._rotated(name, view))
        module = name.removesuffix(".weight")
        if rotated is not None and name.endswith(".weight") and module in self._inputs:
            rotated = hadamard(rotated, self._inputs[module])  # its own inverse
        if rotated is None:
            return None
        packed = module in self._schemes
        return rotated.numpy() if packed else rotated.numpy().astype(view(name).dtype)

    def _rotated_values(
        self, name: str, view: Callable[[str], np.ndarray], rotated: torch.Tensor | None
    ) -> torch.Tensor | None:
        """With the values' rows or columns turned as well, whatever became of the tensor before."""
        size = self._values.readers.get(name)
        if size is not None:
            weight = to_torch(view(name)) if rotated is None else rotated
            return (weight.reshape(len(weight), -1, size) @ self._heads[size]).reshape(weight.shape)
        if name not in self._values.makers:
            return rotated
        ranges, size = self._values.makers[name]
        changed = (to_torch(view(name)) if rotated is None else rotated).clone()
        for start, stop in ((0, len(changed)),) if ranges is None else ranges:
            heads = changed[start:stop].reshape(-1, size, *changed.shape[1:])
            changed[start:stop] = torch.einsum("hi...,io->ho...", heads, self._heads[size]).reshape_as(
                changed[start:stop]
            )
        return changed

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
