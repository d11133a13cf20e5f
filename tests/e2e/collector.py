# SPDX-License-Identifier: Apache-2.0
"""A collector of traces on the loopback interface: what OTLP over HTTP sends, parsed by OpenTelemetry's own records."""

import threading
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)


@dataclass(frozen=True)
class ReadSpan:
    """One span, and the attributes of who made it."""

    name: str
    kind: int
    trace_id: str
    parent_id: str
    seconds: float
    failed: bool
    attributes: dict[str, Any]
    resource: dict[str, Any]


class Collector:
    """``with Collector() as collector``: it takes traces at ``collector.url``; ``opens`` holds up its answers."""

    def __init__(self, status: int = 200) -> None:
        self.spans: list[ReadSpan] = []
        self.bodies: list[bytes] = []
        self.paths: list[str] = []
        self.status = status
        self.opens = threading.Event()
        self.opens.set()
        self.asked = threading.Event()
        collector = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                collector.paths.append(self.path)
                collector.asked.set()
                collector.opens.wait(60)
                if collector.status == 200:
                    collector.take(body)
                self.send_response(collector.status)
                self.send_header("Content-Type", "application/x-protobuf")
                self.end_headers()
                self.wfile.write(ExportTraceServiceResponse().SerializeToString())

            def log_message(self, format: str, *values: Any) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    def __enter__(self) -> "Collector":
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()
        return self

    def __exit__(self, *error: object) -> None:
        self.opens.set()
        self._server.shutdown()
        self._server.server_close()

    def take(self, body: bytes) -> None:
        """Read a request's spans."""
        self.bodies.append(body)
        for of_resource in ExportTraceServiceRequest.FromString(body).resource_spans:
            resource = read(of_resource.resource.attributes)
            for scope in of_resource.scope_spans:
                self.spans += [read_span(span, resource) for span in scope.spans]


def read_span(span: Any, resource: dict[str, Any]) -> ReadSpan:
    """A span of the wire as a record."""
    seconds = (span.end_time_unix_nano - span.start_time_unix_nano) / 1e9
    trace, parent = span.trace_id.hex(), span.parent_span_id.hex()
    failed = span.status.code == 2
    return ReadSpan(span.name, span.kind, trace, parent, seconds, failed, read(span.attributes), resource)


def read(attributes: Any) -> dict[str, Any]:
    """Attributes by their names; lists are lists of plain values."""
    return {one.key: value_of(one.value) for one in attributes}


def value_of(value: Any) -> Any:
    """What stands in one of the kinds of values."""
    kind = value.WhichOneof("value")
    return [value_of(one) for one in value.array_value.values] if kind == "array_value" else getattr(value, kind)
