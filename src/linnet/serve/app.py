# SPDX-License-Identifier: Apache-2.0
"""Wiring: one model, its engine's door and the routes, as one ASGI application behind the gate."""

import asyncio
import hashlib
import time
from dataclasses import dataclass
from functools import cache, partial
from typing import Any

from fastapi import FastAPI, Request
from starlette.exceptions import HTTPException
from starlette.responses import Response

import linnet
from linnet.api import CHAT_MAX_TOKENS, GrammarChecker, ServedModel
from linnet.api.adapters import Adapters
from linnet.api.tools import ModelForms
from linnet.errors import LinnetError
from linnet.serve.adapters import AdapterRoutes, adapters_of
from linnet.serve.admission import Admission
from linnet.serve.answers import JsonAnswer, encode, error_answer
from linnet.serve.bridge import Bridge
from linnet.serve.config import QueueLimits
from linnet.serve.conversations import Conversations
from linnet.serve.costs import Costs
from linnet.serve.embeddings import EmbeddingShape
from linnet.serve.errors import ApiError, from_exception, internal, not_found
from linnet.serve.gate import Gate
from linnet.serve.generation import Generation
from linnet.serve.lifecycle import Lifecycle
from linnet.serve.memory import MemoryUse
from linnet.serve.metrics import CONTENT_TYPE, Metrics
from linnet.serve.openapi import document
from linnet.serve.preparing import ModelFacts, Preparer, most_characters
from linnet.serve.protocol.scoring import RerankRequest, ScoreRequest
from linnet.serve.responses import ResponsesExchange
from linnet.serve.scoring import Scoring
from linnet.serve.security import PUBLIC_ROUTES, Hosts, Keys
from linnet.serve.shapes import ChatShape, CompletionShape
from linnet.serve.tokens import detokenize, tokenize
from linnet.serve.web_page import add_page, add_state
from linnet.settings import ServeConfig


@dataclass(frozen=True)
class Server:
    """Everything of one running server; ``app`` is what an ASGI server calls."""

    app: Gate
    bridge: Bridge
    admission: Admission
    lifecycle: Lifecycle
    metrics: Metrics
    generation: Generation
    conversations: Conversations
    facts: ModelFacts
    memory: MemoryUse
    costs: Costs


def build_server(model: ServedModel, config: ServeConfig) -> Server:
    """Wire a server around a model. The engine does not run before ``bridge.start``."""
    bridge = Bridge(model.connect, lambda: metrics)
    memory = MemoryUse(model.footprint, lambda: bridge.door.process_id)
    metrics = Metrics(config.names[0], bridge.door, model.facts.scheduling, config.metrics_prefix, memory)
    queue = QueueLimits(
        samples=model.facts.max_requests, prompt_tokens=config.queue_prompt_tokens, body_bytes=config.queue_body_bytes
    )
    admission = Admission(queue, on_reject=metrics.rejected)
    conversations = Conversations(model, bridge, config)
    metrics.registry.register(conversations.metrics(config.metrics_prefix, config.names[0]))
    costs = Costs(config.price_per_hour, metrics.generated, config.metrics_prefix, config.names[0])
    metrics.registry.register(costs)
    facts = model_facts(model, config, adapters_of(model, bridge, config))
    lifecycle = Lifecycle(bridge, admission, config)
    preparer = Preparer(facts, config.limits, conversations.modules)
    grammars = GrammarChecker(
        lambda: model.requests.vocabulary, within_s=config.limits.grammar_s, environment=model.environment
    )
    generation = Generation(preparer, bridge, admission, metrics, conversations, grammars, config)
    inner = FastAPI(title="Linnet", docs_url=None, redoc_url=None, openapi_url=None, redirect_slashes=False)
    _add_error_answers(inner)
    _add_operator_routes(inner, lifecycle, metrics)
    _add_model_routes(inner, generation, facts)
    if config.adapters_from is not None:
        AdapterRoutes(generation, facts, config.adapters_from, config.keys).add_to(inner, _card)
    _add_session_routes(inner, conversations)
    add_state(inner, facts, model.facts.scheduling.block_size, bridge, metrics, memory, lifecycle)
    open_paths = PUBLIC_ROUTES | (add_page(inner) if config.ui else frozenset())
    keys = Keys(config.keys, conversations.secret)
    _add_document(inner, keys.required)
    app = Gate(inner, keys, Hosts(config.host, config.allowed_hosts), metrics, open_paths)
    return Server(app, bridge, admission, lifecycle, metrics, generation, conversations, facts, memory, costs)


def model_facts(model: ServedModel, config: ServeConfig, adapters: Adapters) -> ModelFacts:
    """What serving needs to know of a model."""
    return ModelFacts(
        names=config.names,
        requests=model.requests,
        fingerprint=f"linnet-{hashlib.sha256(model.numerics_id.encode()).hexdigest()[:16]}",
        created_s=int(time.time()),
        most_characters=most_characters(model.tokenizer, model.max_model_len),
        defaults=model.sampling_defaults,
        default_max_tokens=config.default_max_tokens or model.sampling_defaults.max_tokens or CHAT_MAX_TOKENS,
        forms=ModelForms(model.tokenizer, config.tool_parser, config.reasoning_parser),
        adapters=adapters,
    )


def _add_error_answers(app: FastAPI) -> None:
    async def known(request: Request, error: Exception) -> Response:
        assert isinstance(error, ApiError)
        return error_answer(error)

    async def of_linnet(request: Request, error: Exception) -> Response:
        assert isinstance(error, LinnetError)
        return error_answer(from_exception(error, request.state.request_id))

    async def of_router(request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        if error.status_code == 404:
            return error_answer(not_found())
        message = "this method is not served here" if error.status_code == 405 else "the request was refused"
        headers = dict(error.headers or {})
        return error_answer(
            ApiError(error.status_code, "invalid_request_error", message, code="method_not_allowed", headers=headers)
        )

    async def of_ours(request: Request, error: Exception) -> Response:  # the gate logs it
        return error_answer(internal(request.state.request_id))

    app.add_exception_handler(Exception, of_ours)
    app.add_exception_handler(ApiError, known)
    app.add_exception_handler(LinnetError, of_linnet)
    app.add_exception_handler(HTTPException, of_router)


def _add_operator_routes(app: FastAPI, lifecycle: Lifecycle, metrics: Metrics) -> None:
    @app.api_route("/health", methods=["GET", "HEAD"])
    async def health() -> Response:
        problem = lifecycle.problem()
        if problem is None:
            return JsonAnswer({"status": "ok"})
        return JsonAnswer({"status": problem}, status_code=503, headers={"Retry-After": "5"})

    @app.api_route("/live", methods=["GET", "HEAD"])
    async def live() -> Response:
        return JsonAnswer({"status": "ok"})

    @app.get("/metrics")
    async def metrics_page() -> Response:
        return Response(metrics.page(), media_type=CONTENT_TYPE)

    @app.get("/version")
    async def version() -> Response:
        return JsonAnswer({"version": linnet.__version__})


def _add_model_routes(app: FastAPI, generation: Generation, facts: ModelFacts) -> None:
    preparer = generation.preparer

    @app.post("/v1/completions")
    async def completions(request: Request) -> Response:
        return await generation.answer(request, preparer.completion, CompletionShape)

    @app.post("/v1/chat/completions")
    async def chat_completions(request: Request) -> Response:
        return await generation.answer(request, preparer.chat, ChatShape)

    @app.post("/v1/embeddings")
    async def embeddings(request: Request) -> Response:
        return await generation.answer(request, preparer.embedding, EmbeddingShape)

    @app.post("/v1/responses")
    async def responses(request: Request) -> Response:
        exchange = ResponsesExchange(preparer)
        return await generation.answer(request, exchange.prepare, exchange.shape)

    @app.post("/v1/score")
    async def score(request: Request) -> Response:
        scoring = Scoring(preparer, ScoreRequest)
        return await generation.answer(request, scoring.prepare, scoring.shape)

    @app.post("/v1/rerank")
    async def rerank(request: Request) -> Response:
        scoring = Scoring(preparer, RerankRequest)
        return await generation.answer(request, scoring.prepare, scoring.shape)

    @app.post("/tokenize")
    async def tokenize_text(request: Request) -> Response:
        return JsonAnswer(await generation.with_body(request, partial(tokenize, preparer)))

    @app.post("/detokenize")
    async def detokenize_ids(request: Request) -> Response:
        return JsonAnswer(await generation.with_body(request, partial(detokenize, preparer)))

    @app.get("/v1/models")
    async def models() -> Response:
        names = (*facts.names, *facts.adapters.names)
        return JsonAnswer({"object": "list", "data": [_card(facts, name) for name in names]})

    @app.get("/v1/models/{name:path}")
    async def card(name: str) -> Response:
        facts.adapter_of(name)
        return JsonAnswer(_card(facts, name))


def _add_document(app: FastAPI, keys_required: bool) -> None:
    """Of all routes; made when it is first asked for."""
    encoded = cache(lambda: encode(document(app, keys_required)))

    @app.get("/openapi.json")
    async def openapi() -> Response:
        return JsonAnswer(await asyncio.to_thread(encoded))


def _add_session_routes(app: FastAPI, conversations: Conversations) -> None:
    """Each key sees its own."""
    sessions, shown = conversations.sessions, conversations.shown

    @app.get("/v1/sessions")
    async def all_sessions(request: Request) -> Response:
        mine = sessions.all_of(request.state.salt)
        return JsonAnswer({"object": "list", "data": [shown(session) for session in mine]})

    @app.get("/v1/sessions/{session_id}")
    async def one_session(request: Request, session_id: str) -> Response:
        session = sessions.get(request.state.salt, session_id)
        whole = shown(session) | {"content": session.content}
        return JsonAnswer(await asyncio.to_thread(encode, whole))  # may be megabytes

    @app.delete("/v1/sessions/{session_id}")
    async def delete_session(request: Request, session_id: str) -> Response:
        sessions.delete(request.state.salt, session_id)
        return JsonAnswer({"id": session_id, "object": "session.deleted", "deleted": True})


def _card(facts: ModelFacts, name: str) -> dict[str, Any]:
    """Of the model, or of an adapter, whose parent it is."""
    return {
        "id": name,
        "object": "model",
        "created": facts.created_s,
        "owned_by": "linnet",
        "root": facts.names[0] if name in facts.names else name,
        "parent": None if name in facts.names else facts.names[0],
        "max_model_len": facts.max_model_len,
    }
