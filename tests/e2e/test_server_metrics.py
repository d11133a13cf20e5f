# SPDX-License-Identifier: Apache-2.0
"""Every number on /metrics is read: its name and type are tabled, it moves by what was done, and by nothing else."""

import json
import math
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.metrics_core import Metric
from prometheus_client.parser import text_string_to_metric_families
from serving import LONG, NAME, Running, digest_model, eventually

from linnet.serve import RequestLimits

ROOT = Path(__file__).resolve().parents[2]
DASHBOARD = ROOT / "tools" / "grafana" / "linnet.json"
HISTOGRAMS = {
    "time_to_first_token_seconds", "inter_token_latency_seconds", "e2e_request_latency_seconds",
    "request_queue_time_seconds", "request_preparation_time_seconds", "request_prompt_tokens",
    "request_generation_tokens", "request_params_n",
}  # fmt: skip
COUNTERS = {
    "prompt_tokens", "generation_tokens", "request_success", "requests_rejected", "requests_aborted", "http_requests",
    "prefix_cache_queries", "prefix_cache_hits", "kv_slots_reserved", "kv_slots_unused", "num_preemptions",
    "swapped_out_blocks", "swapped_in_blocks", "swap_declined_blocks", "swapped_out_bytes", "swapped_in_bytes",
    "engine_steps", "engine_restarts", "kv_kept_blocks_swapped_out", "iteration_tokens", "session_turns",
    "log_lines_dropped",
}  # fmt: skip
GAUGES = {
    "num_requests_running", "num_requests_waiting", "kv_cache_usage_perc", "kv_blocks_total", "kv_blocks_used",
    "kv_blocks_cached", "kv_blocks_kept", "kv_blocks_free", "memory_predicted_bytes", "memory_peak_bytes",
    "swap_blocks_total", "swap_blocks_used", "sessions", "cache_config_info",
    "energy_readable", "cost_per_million_tokens",
}  # fmt: skip
KINDS = {name: kind for kind, names in (("histogram", HISTOGRAMS), ("counter", COUNTERS), ("gauge", GAUGES))
         for name in names}  # fmt: skip


@pytest.fixture(scope="module")
def server() -> Iterator[Running]:
    with Running(digest_model(num_blocks=256), limits=RequestLimits(samples=128), price_per_hour=2.0) as running:
        yield running
        running.wait_settled()


def page(server: Running) -> dict[str, Metric]:
    """Families by their names without our prefix."""
    text = server.http.get("/metrics").text
    families = {family.name: family for family in text_string_to_metric_families(text)}
    assert len(families) == len(list(text_string_to_metric_families(text))), "a family occurs twice"
    ours = {name.removeprefix("linnet:"): one for name, one in families.items() if name.startswith("linnet:")}
    return {name: one for name, one in ours.items() if not name.endswith("_created")}  # the client library's own


def value(families: dict[str, Metric], name: str, suffix: str = "", **labels: str) -> float:
    """The sum of the series of a family with these labels."""
    found = [
        sample.value
        for sample in families[name].samples
        if sample.name == f"linnet:{name}{suffix}" and labels.items() <= sample.labels.items()
    ]
    return math.fsum(found)


class Difference:
    """What the body of ``with`` moved."""

    def __init__(self, server: Running) -> None:
        self._server = server

    def __enter__(self) -> "Difference":
        self._server.wait_settled()
        self._before = page(self._server)
        self._began_s = time.monotonic()
        return self

    def __exit__(self, *error: object) -> None:
        self._server.wait_settled()
        self.seconds = time.monotonic() - self._began_s
        self._after = page(self._server)

    def of(self, name: str, suffix: str = "_total", **labels: str) -> float:
        after = value(self._after, name, suffix, **labels)
        return round(after - value(self._before, name, suffix, **labels), 9)

    def histogram(self, name: str) -> tuple[int, float]:
        """Count and sum."""
        return int(self.of(name, "_count")), self.of(name, "_sum")


def completion(server: Running, **more: Any) -> dict[str, Any]:
    answer = server.http.post("/v1/completions", json={"model": NAME, "prompt": "the rain", "seed": 1, **more})
    assert answer.status_code == 200, answer.text
    return dict(answer.json())


def test_every_family_has_the_kind_of_the_table_and_is_described(server: Running) -> None:
    completion(server, max_tokens=1)  # tokens have a price from the first on
    families = page(server)
    where_readable = {"energy_joules"}
    assert {name: one.type for name, one in families.items() if name not in where_readable} == KINDS
    for name, one in families.items():
        assert one.documentation.endswith("."), name
        for sample in one.samples:
            assert sample.labels["model_name"] == NAME, name
            assert sample.value >= 0, sample


@pytest.mark.parametrize("name", sorted(HISTOGRAMS))
def test_buckets_grow_and_end_in_all(server: Running, name: str) -> None:
    completion(server, max_tokens=4, n=2)
    family = page(server)[name]
    buckets = [sample for sample in family.samples if sample.name.endswith("_bucket")]
    bounds = [float(sample.labels["le"]) for sample in buckets]
    assert bounds == sorted(set(bounds))
    assert bounds[-1] == math.inf
    assert len(bounds) > 5
    counts = [sample.value for sample in buckets]
    assert counts == sorted(counts)
    count = value({name: family}, name, "_count")
    assert counts[-1] == count > 0
    steps = zip(bounds, counts, counts[1:], strict=False)
    least = sum(low * (more - fewer) for low, fewer, more in steps)
    assert least <= value({name: family}, name, "_sum") + 1e-9


def test_counts_and_sums_are_those_of_the_requests(server: Running) -> None:
    with Difference(server) as moved:
        answers = [completion(server, max_tokens=count, n=n, ignore_eos=True) for count, n in ((1, 1), (5, 2), (3, 4))]
    prompt = answers[0]["usage"]["prompt_tokens"]
    generated = sum(one["usage"]["completion_tokens"] for one in answers)
    samples = 7
    assert generated == 1 + 10 + 12
    assert moved.of("prompt_tokens") == samples * prompt
    assert moved.of("generation_tokens") == generated
    assert moved.of("request_success", finished_reason="length") == moved.of("request_success") == samples
    assert moved.of("http_requests", route="/v1/completions", status="200") == 3
    assert moved.of("requests_rejected") == moved.of("requests_aborted") == moved.of("num_preemptions") == 0
    assert moved.histogram("request_prompt_tokens") == (samples, samples * prompt)
    assert moved.histogram("request_generation_tokens") == (samples, generated)
    assert moved.histogram("request_params_n") == (3, 7)
    for name, count in (
        ("time_to_first_token_seconds", samples),
        ("inter_token_latency_seconds", generated - samples),
        ("e2e_request_latency_seconds", samples),
        ("request_queue_time_seconds", samples),
        ("request_preparation_time_seconds", 3),
    ):
        found, total = moved.histogram(name)
        assert found == count, name
        assert 0 < total <= samples * moved.seconds, name
    first, rest, whole = (
        moved.histogram(name)[1]
        for name in ("time_to_first_token_seconds", "inter_token_latency_seconds", "e2e_request_latency_seconds")
    )
    assert whole == pytest.approx(first + rest, abs=0.05 * samples)
    assert moved.of("prefix_cache_queries") >= moved.of("prefix_cache_hits") > 0
    assert moved.of("iteration_tokens") >= generated - samples
    assert moved.of("engine_steps") > 0
    assert moved.of("kv_slots_reserved") >= moved.of("kv_slots_unused") >= 0


def test_other_ends_are_counted_as_what_they_are(server: Running) -> None:
    with Difference(server) as moved:
        assert server.http.post("/v1/completions", json={"model": NAME}).status_code == 400
        assert server.http.get("/nowhere").status_code == 404
        completion(server, max_tokens=200, stop=["e", "a", "t", " "], temperature=2.0)
        with server.http.stream("POST", "/v1/completions", json={**LONG, "stream": True}) as response:
            next(response.iter_lines())
        eventually(lambda: server.metric("requests_aborted_total") > 0)
    assert moved.of("http_requests", route="/v1/completions", status="400") == 1
    assert moved.of("http_requests", route="other", status="404") == 1
    assert moved.of("request_success", finished_reason="stop") == 1
    assert moved.of("request_success", finished_reason="abort") == moved.of("requests_aborted") == 1


def test_refusals_are_counted_by_their_reason() -> None:
    with Running(digest_model(max_sequences=1, max_waiting_requests=0), queue_prompt_tokens=4) as running:
        body = {"model": NAME, "prompt": "the rain in a hat"}
        assert running.http.post("/v1/completions", json=body).status_code == 400  # never fits
        running.llm.executable.delay_s = 0.01
        with running.http.stream("POST", "/v1/completions", json={**LONG, "prompt": "a", "stream": True}) as response:
            next(response.iter_lines())
            refused = running.http.post("/v1/completions", json={"model": NAME, "prompt": "a"})
            assert refused.status_code == 429
        assert running.metric("requests_rejected_total", reason="requests") == 1


def test_gauges_show_what_is_there(server: Running) -> None:
    server.llm.executable.delay_s = 0.005
    try:
        with server.http.stream("POST", "/v1/completions", json={**LONG, "stream": True, "n": 3}) as response:
            next(response.iter_lines())
            now = page(server)
        assert 0 < value(now, "num_requests_running") + value(now, "num_requests_waiting") <= 3
        used, total = value(now, "kv_blocks_used"), value(now, "kv_blocks_total")
        assert 0 < used < total == 256
        assert value(now, "kv_cache_usage_perc") == pytest.approx(used / total)
        assert used + value(now, "kv_blocks_cached") + value(now, "kv_blocks_free") == total
    finally:
        server.llm.executable.delay_s = 0.0


def named(dashboard: dict[str, Any]) -> set[str]:
    """Metrics in the expressions of a dashboard."""
    expressions = [target["expr"] for panel in dashboard["panels"] for target in panel.get("targets", ())]
    assert all("$model" in one for one in expressions)
    return {name for one in expressions for name in re.findall(r"linnet:(\w+)", one)}


def test_every_metric_of_the_dashboard_is_exported(server: Running) -> None:
    dashboard = json.loads(DASHBOARD.read_text(encoding="utf-8"))
    server.http.get("/nowhere")
    exported = {sample.name.removeprefix("linnet:") for one in page(server).values() for sample in one.samples}
    exported |= {f"{name}_total" for name in COUNTERS}  # a counter with labels has no series before its first
    assert named(dashboard) <= exported
    assert len(named(dashboard)) > 20
    places = [tuple(panel["gridPos"].values()) for panel in dashboard["panels"]]
    assert len(set(places)) == len(places)
    assert len({panel["id"] for panel in dashboard["panels"]}) == len(places)
