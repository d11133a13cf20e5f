# SPDX-License-Identifier: Apache-2.0
"""Traces: one OpenTelemetry span a request, sent to a collector by OTLP over HTTP. Needs the extra ``otel``.

Names are vLLM's where it has one, else those of the semantic conventions for generative models and HTTP. A span is made
when its request has ended; a thread sends them in batches. What a collector does not take is dropped, so that one that
is slow or dead costs nothing. OpenTelemetry's own variables (OTEL_SERVICE_NAME, OTEL_EXPORTER_OTLP_HEADERS,
OTEL_TRACES_SAMPLER, OTEL_BSP_* and so on) hold.
"""

import logging
import threading
from collections.abc import Sequence
from urllib.parse import urlsplit, urlunsplit

from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import OTELResourceDetector, Resource
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult
from opentelemetry.trace import SpanKind, StatusCode
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
from opentelemetry.util.types import AttributeValue

import linnet
from linnet.serve.records import RequestRecord, Work

logger = logging.getLogger("linnet.serve")

SPAN_NAME = "llm_request"
CLOSE_S = 2.0
"""How long the last spans may take to go out when the server ends."""
OPERATIONS = {
    "/v1/chat/completions": "chat",
    "/v1/responses": "chat",
    "/v1/completions": "text_completion",
    "/v1/embeddings": "embeddings",
}


class Traces:
    """The spans of one server. ``tell`` costs microseconds; ``close`` may take CLOSE_S."""

    def __init__(self, endpoint: str) -> None:
        url = traces_url(endpoint)
        logging.getLogger("opentelemetry").setLevel(logging.CRITICAL)  # each try, which _Exporter says once
        resource = Resource({"service.name": "linnet", "service.version": linnet.__version__})
        self._provider = TracerProvider(
            resource=resource.merge(OTELResourceDetector().detect()), shutdown_on_exit=False
        )
        self._exporter = _Exporter(OTLPSpanExporter(endpoint=url), shown(url))
        self._provider.add_span_processor(BatchSpanProcessor(self._exporter))
        self._tracer = self._provider.get_tracer("linnet.serve", linnet.__version__)
        self._context = TraceContextTextMapPropagator()

    def tell(self, record: RequestRecord) -> None:
        """The span of a request that has ended, in the trace that its client named."""
        span = self._tracer.start_span(
            SPAN_NAME,
            context=self._context.extract(record.trace),
            kind=SpanKind.SERVER,
            attributes=attributes(record),
            start_time=record.began_ns,
        )
        if record.status >= 500:
            span.set_status(StatusCode.ERROR)
        span.end(record.began_ns + int(record.total_s * 1e9))

    def close(self) -> None:
        """Send what there is, as far as that is quickly done. Blocks."""
        ending = threading.Thread(target=self._provider.shutdown, daemon=True)
        ending.start()
        ending.join(CLOSE_S)
        if ending.is_alive():
            self._exporter.shutdown()


class _Exporter(SpanExporter):
    """Says once that nobody takes the spans, and once that somebody does again."""

    def __init__(self, exporter: SpanExporter, where: str) -> None:
        self._exporter, self._where = exporter, where
        self._lost = False

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        result = self._exporter.export(spans)
        lost = result is not SpanExportResult.SUCCESS
        if lost and not self._lost:
            logger.warning("no collector takes traces at %s; they are dropped until one does", self._where)
        elif self._lost and not lost:
            logger.warning("traces are taken at %s again", self._where)
        self._lost = lost
        return result

    def shutdown(self) -> None:
        self._exporter.shutdown()

    def force_flush(self, timeout_millis: int = 30000) -> bool:
        return self._exporter.force_flush(timeout_millis)


def traces_url(endpoint: str) -> str:
    """Where traces are taken: an address without a path has them where the protocol puts them."""
    parts = urlsplit(endpoint)
    return urlunsplit(parts._replace(path="/v1/traces")) if parts.path in ("", "/") else endpoint


def shown(url: str) -> str:
    """An address as it is logged: what follows the path may be a secret."""
    return urlunsplit(urlsplit(url)._replace(query="", fragment=""))


def attributes(record: RequestRecord) -> dict[str, AttributeValue]:
    """What a span says of its request. Never what was asked or answered."""
    found: dict[str, AttributeValue | None] = {
        "gen_ai.request.id": record.request_id,
        "gen_ai.provider.name": "linnet",
        "gen_ai.operation.name": OPERATIONS.get(record.route),
        "gen_ai.latency.e2e": record.total_s,
        "http.request.method": record.method,
        "http.route": record.route,
        "http.response.status_code": record.status,
        "error.type": str(record.status) if record.status >= 400 else None,
        "linnet.tenant": record.tenant,
    }
    work = record.work()
    if work is not None:
        found |= _of_work(work)
    return {name: value for name, value in found.items() if value is not None}


def _of_work(work: Work) -> dict[str, AttributeValue | None]:
    usage = work.usage
    return {
        "gen_ai.request.model": work.model,
        "gen_ai.response.model": work.model,
        "gen_ai.request.n": work.n,
        "gen_ai.request.max_tokens": work.max_tokens,
        "gen_ai.request.temperature": work.temperature,
        "gen_ai.request.top_p": work.top_p,
        "gen_ai.usage.num_sequences": work.samples,
        "gen_ai.usage.prompt_tokens": usage.prompt,
        "gen_ai.usage.completion_tokens": usage.generated,
        "gen_ai.usage.input_tokens": usage.prompt,
        "gen_ai.usage.output_tokens": usage.generated,
        "gen_ai.usage.cache_read.input_tokens": usage.cached,
        "gen_ai.response.finish_reasons": work.finish_reasons,
        "gen_ai.latency.time_in_queue": work.queued_s,
        "gen_ai.latency.time_to_first_token": work.first_token_s,
    }
