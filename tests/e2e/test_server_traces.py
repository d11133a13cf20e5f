# SPDX-License-Identifier: Apache-2.0
"""Traces: one span of every request at a collector, in the client's own trace; and a collector holds up nobody."""

import builtins
import logging
import socket
from typing import Any

import pytest
from serving import NAME, Running, digest_model, eventually

from linnet.errors import ConfigError, UnsupportedError
from linnet.serve import ServeConfig, check_traces

pytest.importorskip("opentelemetry.sdk", reason="traces need the extra otel")
pytest.importorskip("opentelemetry.exporter.otlp.proto.http", reason="traces need the extra otel")

from collector import Collector, ReadSpan

from linnet.serve import tracing

KEY, OTHER = "key-of-the-first-tenant", "key-of-the-other-tenant"
TRACE, PARENT = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
SERVER = 2
"""The kind of a span, in the protocol's records."""


def traced(collector: Collector, **config: Any) -> Running:
    return Running(digest_model(), otlp_traces_endpoint=collector.url, **config)


def of_request(collector: Collector, request_id: str) -> ReadSpan:
    found = [span for span in collector.spans if span.attributes["gen_ai.request.id"] == request_id]
    assert len(found) == 1, request_id
    return found[0]


def test_every_request_is_a_span_that_says_what_it_was() -> None:
    chat = {"model": NAME, "messages": [{"role": "user", "content": "the rain"}], "max_tokens": 5, "ignore_eos": True}
    with Collector() as collector:
        with traced(collector) as server:
            post = server.http.post
            body = {**chat, "temperature": 0.5, "top_p": 0.75, "n": 2}
            answer = post("/v1/chat/completions", json=body, headers={"X-Request-Id": "whole"}).json()
            answer_s = post("/v1/chat/completions", json={**chat, "stream": True}, headers={"X-Request-Id": "stream"})
            assert answer_s.text.endswith("data: [DONE]\n\n")
            post("/v1/embeddings", json={"model": NAME, "input": "rain"}, headers={"X-Request-Id": "refused"})
            post("/nowhere/at/all", headers={"X-Request-Id": "nowhere"})
            server.http.get("/v1/models", headers={"X-Request-Id": "silent"})
            server.wait_settled()
        assert len(collector.spans) == 4
    assert set(collector.paths) == {"/v1/traces"}
    whole = of_request(collector, "whole")
    usage = answer["usage"]
    assert (whole.name, whole.kind, whole.failed) == ("llm_request", SERVER, False)
    assert whole.resource["service.name"] == "linnet"
    expected = {
        "gen_ai.provider.name": "linnet", "gen_ai.operation.name": "chat",
        "gen_ai.request.model": NAME, "gen_ai.response.model": NAME,
        "gen_ai.request.max_tokens": 5, "gen_ai.request.temperature": 0.5, "gen_ai.request.top_p": 0.75,
        "gen_ai.request.n": 2, "gen_ai.usage.num_sequences": 2,
        "gen_ai.usage.prompt_tokens": usage["prompt_tokens"], "gen_ai.usage.completion_tokens": 10,
        "gen_ai.usage.input_tokens": usage["prompt_tokens"], "gen_ai.usage.output_tokens": 10,
        "gen_ai.usage.cache_read.input_tokens": usage["prompt_tokens_details"]["cached_tokens"],
        "gen_ai.response.finish_reasons": ["length", "length"],
        "http.request.method": "POST", "http.route": "/v1/chat/completions", "http.response.status_code": 200,
    }  # fmt: skip
    assert {name: whole.attributes.get(name) for name in expected} == expected
    queued, first, whole_s = (
        whole.attributes[f"gen_ai.latency.{name}"] for name in ("time_in_queue", "time_to_first_token", "e2e")
    )
    assert 0 <= queued <= first <= whole_s
    assert whole_s == pytest.approx(whole.seconds, abs=1e-6)
    stream = of_request(collector, "stream").attributes
    assert (stream["gen_ai.response.finish_reasons"], stream["gen_ai.usage.completion_tokens"]) == (["length"], 5)
    nowhere = of_request(collector, "nowhere").attributes
    assert (nowhere["http.route"], nowhere["http.response.status_code"]) == ("other", 404)
    assert nowhere["error.type"] == "404"
    assert "gen_ai.request.model" not in nowhere


def test_a_span_belongs_to_the_trace_that_its_client_names() -> None:
    body = {"model": NAME, "prompt": "the rain", "max_tokens": 1}
    with Collector() as collector:
        with traced(collector) as server:
            for name, flags in (("sampled", "01"), ("unsampled", "00")):
                headers = {"X-Request-Id": name, "traceparent": f"00-{TRACE}-{PARENT}-{flags}"}
                assert server.http.post("/v1/completions", json=body, headers=headers).status_code == 200
            for value in ("", "00-0-0-01", f"00-{'0' * 32}-{PARENT}-01", f"ff-{TRACE}-{PARENT}-01", "é", "x" * 9000):
                sent = server.http.post(
                    "/v1/completions", json=body, headers=[(b"traceparent", value.encode("latin-1"))]
                )
                assert sent.status_code == 200
        spans = collector.spans
    assert len(spans) == 7  # all but the one that its client did not want
    (one,) = [span for span in spans if span.trace_id == TRACE]
    assert (one.attributes["gen_ai.request.id"], one.parent_id) == ("sampled", PARENT)
    assert {span.parent_id for span in spans if span is not one} == {""}


def test_prompts_answers_and_keys_are_in_no_span() -> None:
    sentinel = "sentinel-8271-prompt"
    message = {"role": "user", "content": sentinel}
    with Collector() as collector:
        with traced(collector, keys=(KEY, OTHER)) as server:
            for key in (KEY, OTHER, "no-key-of-this-server"):
                headers = {"Authorization": f"Bearer {key}"}
                for path, body in (
                    ("/v1/completions", {"model": NAME, "prompt": sentinel, "max_tokens": 2, "stop": [sentinel]}),
                    ("/v1/completions", {"model": NAME, "prompt": sentinel, "n": sentinel}),
                    ("/v1/completions", {"model": sentinel, "prompt": "rain"}),
                    ("/v1/chat/completions", {"model": NAME, "messages": [message], "user": sentinel}),
                    (f"/v1/{sentinel}", {}),
                ):
                    server.http.post(path, json=body, headers=headers)
        assert len(collector.spans) == 15
    for body in collector.bodies:
        for secret in (sentinel, KEY, OTHER, "no-key-of-this-server"):
            assert secret.encode() not in body
    tenants = [span.attributes.get("linnet.tenant") for span in collector.spans]
    assert tenants.count(None) == 5  # nobody's
    assert len(set(tenants)) == 3


def test_a_collector_that_does_not_answer_holds_up_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "1")
    monkeypatch.setattr(tracing, "CLOSE_S", 0.2)
    body = {"model": NAME, "prompt": "the rain", "max_tokens": 1}
    with Collector() as collector:
        collector.opens.clear()
        with traced(collector) as server:
            for _ in range(20):
                assert server.http.post("/v1/completions", json=body).status_code == 200
                assert server.http.get("/health").status_code == 200
            assert collector.asked.wait(20)  # and has been waiting for its answer since
            server.wait_settled()
        assert server.status == 0
        assert not collector.spans


@pytest.mark.parametrize("status", [None, 400, 503])
def test_a_collector_that_is_not_there_costs_one_line(
    status: int | None, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "1")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_TIMEOUT", "1")
    monkeypatch.setattr(tracing, "CLOSE_S", 0.2)
    body = {"model": NAME, "prompt": "the rain", "max_tokens": 1}
    with Collector(200 if status is None else status) as collector:
        with socket.create_server(("127.0.0.1", 0)) as taken:
            port = taken.getsockname()[1]
        url = f"http://127.0.0.1:{port}" if status is None else collector.url
        with caplog.at_level(logging.WARNING):
            with Running(digest_model(), otlp_traces_endpoint=url) as server:
                for _ in range(3):
                    assert server.http.post("/v1/completions", json=body).status_code == 200
                    eventually(lambda: "no collector takes traces" in caplog.text, 20)
        assert server.status == 0
    (line,) = caplog.messages
    assert line == f"no collector takes traces at {url}/v1/traces; they are dropped until one does"


def test_a_collector_that_is_there_again_is_told(caplog: pytest.LogCaptureFixture) -> None:
    class Exporter(tracing.SpanExporter):
        results = iter([True, False, False, True, True, False])

        def export(self, spans: Any) -> tracing.SpanExportResult:
            return tracing.SpanExportResult.SUCCESS if next(self.results) else tracing.SpanExportResult.FAILURE

    exporter = tracing._Exporter(Exporter(), "http://c:1/v1/traces")
    with caplog.at_level(logging.WARNING):
        for _ in range(6):
            exporter.export([])
    lost, again = "no collector takes traces at", "traces are taken at"
    assert [message.split(" http")[0] for message in caplog.messages] == [lost, again, lost]


def test_addresses_of_collectors() -> None:
    for given, url in (
        ("http://c:4318", "http://c:4318/v1/traces"),
        ("https://c/", "https://c/v1/traces"),
        ("http://c:1/otlp/v1/traces?key=1", "http://c:1/otlp/v1/traces?key=1"),
    ):
        ServeConfig(names=("m",), otlp_traces_endpoint=given)
        assert tracing.traces_url(given) == url
        assert "key" not in tracing.shown(url)
    for given in ("c:4318", "grpc://c:4317", "http://", "http://c:x", "http://c:99999", "http://me:secret-8271@c", ""):
        with pytest.raises(ConfigError, match="otlp_traces_endpoint is ") as caught:
            ServeConfig(names=("m",), otlp_traces_endpoint=given)
        assert "secret-8271" not in str(caught.value)


def test_without_the_extra_the_line_that_installs_it_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def without(name: str, *rest: Any) -> Any:
        if name == "linnet.serve.tracing":
            raise ImportError("no opentelemetry")
        return real(name, *rest)

    monkeypatch.setattr(builtins, "__import__", without)
    check_traces(ServeConfig(names=("m",)))
    with pytest.raises(UnsupportedError, match=r"otlp_traces_endpoint needs OpenTelemetry: .*pip.* install .*\[otel\]"):
        check_traces(ServeConfig(names=("m",), otlp_traces_endpoint="http://c"))
