# SPDX-License-Identifier: Apache-2.0
"""The page at ``/``: files of the package, and what its live picture of the engine is drawn from.

The files say nothing about the model and are open without a key; ``/state`` is not. Nothing of the page comes from
elsewhere; its policy forbids a browser to load, run or send anything that is not from here. ``require-trusted-types``
makes text that would become HTML or script an error in browsers that know it, whatever its files do.
"""

import hashlib
import time
from dataclasses import dataclass
from importlib.resources import files

from fastapi import FastAPI, Request
from starlette.responses import Response

from linnet.serve.answers import JsonAnswer
from linnet.serve.bridge import Bridge
from linnet.serve.lifecycle import Lifecycle
from linnet.serve.memory import MemoryUse
from linnet.serve.metrics import Metrics
from linnet.serve.preparing import ModelFacts

KINDS = {
    "html": "text/html; charset=utf-8",
    "css": "text/css; charset=utf-8",
    "js": "text/javascript; charset=utf-8",
    "svg": "image/svg+xml",
}
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; base-uri 'none'; "
    "form-action 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'; trusted-types 'none'"
)
HEADERS = {
    "Content-Security-Policy": POLICY,
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(), geolocation=(), microphone=()",
    "Cache-Control": "no-cache",  # kept, and asked for again each time: an upgrade is never mixed with what was before
}

SHOWN = ("temperature", "top_p", "top_k", "min_p", "repetition_penalty")


@dataclass(frozen=True)
class PageFile:
    """One file as it goes out."""

    content: bytes
    kind: str
    tag: str

    def answer(self, request: Request) -> Response:
        """The file, or 304 for who has it."""
        headers = {**HEADERS, "ETag": self.tag}
        if self.tag in [one.strip().removeprefix("W/") for one in request.headers.get("if-none-match", "").split(",")]:
            return Response(status_code=304, headers=headers)
        return Response(self.content, media_type=self.kind, headers=headers)


def page_files() -> dict[str, PageFile]:
    """Paths and files: ``/`` and ``/page/NAME``."""
    found = {}
    for file in files("linnet.serve").joinpath("page").iterdir():
        kind = KINDS.get(file.name.rpartition(".")[2])
        if kind is not None:
            content = file.read_bytes()
            path = "/" if file.name == "index.html" else f"/page/{file.name}"
            found[path] = PageFile(content, kind, f'"{hashlib.sha256(content).hexdigest()[:32]}"')
    return found


def add_page(app: FastAPI) -> frozenset[str]:
    """Serve the files; returns their paths, which are open without a key."""
    served = page_files()

    async def page(request: Request) -> Response:
        return served[request.url.path].answer(request)

    for path in served:
        app.add_api_route(path, page, methods=["GET", "HEAD"])
    return frozenset(served)


def add_state(
    app: FastAPI,
    facts: ModelFacts,
    block_size: int,
    bridge: Bridge,
    metrics: Metrics,
    memory: MemoryUse,
    lifecycle: Lifecycle,
) -> None:
    """``GET /state``: the engine now, as JSON. Counts only grow; rates are differences over ``clock_s``."""

    unasked = facts.defaults.params({})
    defaults = {name: getattr(unasked, name) for name in SHOWN} | {"max_tokens": facts.default_max_tokens}

    @app.get("/state")
    async def state() -> Response:
        now = bridge.door.counters
        return JsonAnswer(
            {
                "status": lifecycle.problem() or "ok",
                "models": list(facts.names),
                "max_model_len": facts.max_model_len,
                "sampling_defaults": defaults,
                "clock_s": time.monotonic(),
                "requests": {"running": now.running_requests, "waiting": now.waiting_requests},
                "block_size": block_size,
                "kv_blocks": {
                    "total": now.total_blocks,
                    "used": now.used_blocks,
                    "cached": now.cached_blocks,
                    "free": now.free_blocks,
                },
                "prefix": {"query_tokens": now.prefix_query_tokens, "hit_tokens": now.prefix_hit_tokens},
                "tokens": {"generated": metrics.generated(), "computed": now.computed_tokens},
                "memory": {
                    "predicted_bytes": memory.predicted.total_bytes,
                    "peak_bytes": memory.peak_bytes(),
                },
            },
            headers={"Cache-Control": "no-store"},
        )
