# SPDX-License-Identifier: Apache-2.0
"""/v1/score and /v1/rerank: the cosine of two texts' embeddings, which are those of /v1/embeddings."""

import time
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from linnet.api import Piece, Sample, embedding_of
from linnet.api.sessions import Visit
from linnet.serve.answers import encode
from linnet.serve.body import parse_object
from linnet.serve.errors import ApiError, invalid
from linnet.serve.preparing import ModelFacts, Prepared, Preparer
from linnet.serve.protocol import read_request
from linnet.serve.protocol.scoring import RerankRequest, ScoreRequest


class Scoring:
    """One request: ``prepare`` is a Preparer's method of it, ``shape`` makes its Shape, which never streams."""

    held = True
    says_done = True

    def __init__(self, preparer: Preparer, kind: type[ScoreRequest] | type[RerankRequest]) -> None:
        self._preparer, self._kind = preparer, kind
        self._texts: list[str] = []
        self._pairs: list[tuple[int, int]] = []  # places of texts
        self._request: ScoreRequest | RerankRequest | None = None
        self._tokens = 0
        self._id = ""

    def prepare(self, body: bytes, visit: Visit) -> Prepared:
        """As ``Preparer.embedding`` of every text once. Raises ApiError naming this request's parameters."""
        value = parse_object(body)
        places: list[str]
        if self._kind is ScoreRequest:
            score = read_request(ScoreRequest, value)
            places, self._request = self._take_score(score), score
        else:
            rerank = read_request(RerankRequest, value)
            places, self._request = self._take_rerank(rerank), rerank
        request = self._request
        wanted = {
            "model": request.model,
            "input": self._texts,
            "pooling": request.pooling,
            "cache_salt": request.cache_salt,
            "timeout_s": request.timeout_s,
        }
        try:
            prepared = self._preparer.embedding(encode(wanted), visit)
        except ApiError as error:
            raise _renamed(error, places) from None
        self._tokens = prepared.prompt_tokens
        return prepared

    def shape(self, prepared: Prepared, facts: ModelFacts, request_id: str) -> "Scoring":
        """It is one itself."""
        self._id = request_id
        return self

    def whole(self, samples: Sequence[Sample]) -> dict[str, Any]:
        """The scores in the order of the texts, or the documents in the order of their scores."""
        vectors = [embedding_of(sample, normalize=True) for sample in samples]
        scores = [float(np.dot(vectors[one], vectors[other])) for one, other in self._pairs]
        assert self._request is not None
        usage = {"prompt_tokens": self._tokens, "total_tokens": self._tokens}
        fields = {"model": self._request.model, "usage": usage}
        if isinstance(self._request, RerankRequest):
            return {"id": f"rerank-{self._id}", **fields, "results": self._results(self._request, scores)}
        data = [{"index": index, "object": "score", "score": score} for index, score in enumerate(scores)]
        return {"id": f"score-{self._id}", "object": "list", "created": int(time.time()), **fields, "data": data}

    def chunks(self, sample: Sample, piece: Piece) -> Iterator[dict[str, Any]]:
        """None: the request has no stream."""
        return iter(())

    def usage_chunk(self, samples: Sequence[Sample]) -> dict[str, Any]:
        """None: the request has no stream."""
        return {}

    def _take_score(self, request: ScoreRequest) -> list[str]:
        first = [request.text_1] if isinstance(request.text_1, str) else request.text_1
        second = [request.text_2] if isinstance(request.text_2, str) else request.text_2
        for name, texts in (("text_1", first), ("text_2", second)):
            if not texts:
                raise invalid(f"{name} has no texts; at least one is needed", name)
        if len(first) not in (1, len(second)):
            raise invalid(
                f"text_1 has {len(first)} texts; accepted are 1 or, as many as text_2, {len(second)}", "text_1"
            )
        self._texts = [*first, *second]
        offset = len(first)
        self._pairs = [(index if offset > 1 else 0, offset + index) for index in range(len(second))]
        return [f"text_1[{index}]" for index in range(offset)] + [f"text_2[{index}]" for index in range(len(second))]

    def _take_rerank(self, request: RerankRequest) -> list[str]:
        documents = [_document(one, f"documents[{index}]") for index, one in enumerate(request.documents)]
        self._texts = [request.query, *documents]
        self._pairs = [(0, 1 + index) for index in range(len(documents))]
        return ["query", *(f"documents[{index}]" for index in range(len(documents)))]

    def _results(self, request: RerankRequest, scores: list[float]) -> list[dict[str, Any]]:
        ranked = sorted(range(len(scores)), key=lambda index: (-scores[index], index))
        most = len(ranked) if not request.top_n else request.top_n
        results = []
        for index in ranked[:most]:
            result: dict[str, Any] = {"index": index, "relevance_score": scores[index]}
            if request.return_documents is not False:
                result["document"] = {"text": self._texts[1 + index]}
            results.append(result)
        return results


def _document(value: str | dict[str, Any], place: str) -> str:
    text = value.get("text") if isinstance(value, dict) else value
    if not isinstance(text, str):
        raise invalid(f"{place} must be a text or an object with a text", place, "invalid_type")
    return text


def _renamed(error: ApiError, places: Sequence[str]) -> ApiError:
    """``input[3]`` -> what the client called it."""
    if error.param is not None and error.param.startswith("input"):
        index = error.param.removeprefix("input[").removesuffix("]")
        ours = places[int(index)] if index.isdigit() and int(index) < len(places) else places[0].partition("[")[0]
        error.message = error.message.replace(error.param, ours)
        error.param = ours
    return error
