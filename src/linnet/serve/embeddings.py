# SPDX-License-Identifier: Apache-2.0
"""The JSON of /v1/embeddings: vectors of length 1, as numbers or as base64 of little-endian float32."""

import base64
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from linnet.api import Piece, Sample, embedding_of
from linnet.serve.preparing import ModelFacts, Prepared
from linnet.serve.protocol import EmbeddingRequest


class EmbeddingShape:
    """A Shape that never streams."""

    held = True
    says_done = True

    def __init__(self, prepared: Prepared, facts: ModelFacts, request_id: str) -> None:
        assert isinstance(prepared.request, EmbeddingRequest)
        self._request, self._tokens = prepared.request, prepared.prompt_tokens

    def whole(self, samples: Sequence[Sample]) -> dict[str, Any]:
        """One embedding a prompt, in their order."""
        data = [
            {"object": "embedding", "index": sample.index, "embedding": self._encoded(sample)} for sample in samples
        ]
        usage = {"prompt_tokens": self._tokens, "total_tokens": self._tokens}
        return {"object": "list", "data": data, "model": self._request.model, "usage": usage}

    def chunks(self, sample: Sample, piece: Piece) -> Iterator[dict[str, Any]]:
        """None: the request has no stream."""
        return iter(())

    def usage_chunk(self, samples: Sequence[Sample]) -> dict[str, Any]:
        """None: the request has no stream."""
        return {}

    def _encoded(self, sample: Sample) -> str | list[float]:
        found = embedding_of(sample, normalize=True, dimensions=self._request.dimensions)
        if self._request.encoding_format == "base64":
            return base64.b64encode(found.astype("<f4").tobytes()).decode()
        numbers: list[float] = np.asarray(found).tolist()
        return numbers
