# SPDX-License-Identifier: Apache-2.0
"""The metrics page: vLLM's names under our prefix. Counters and histograms live here; gauges are read at scrape time.

Labels are the served model's name, finish reasons, reject reasons, route templates and status codes: never anything a
client wrote.
"""

from collections.abc import Iterator
from typing import Any, get_args

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, InfoMetricFamily, Metric
from prometheus_client.process_collector import ProcessCollector

from linnet.api.output import FinishReason
from linnet.engine import EngineDoor
from linnet.logs import dropped_lines
from linnet.scheduler import SchedulerConfig
from linnet.serve.memory import MemoryUse

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
FIRST_TOKEN_S = (0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1, 2.5, 5, 7.5, 10, 20, 40, 80, 160)
NEXT_TOKEN_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1, 2.5, 5, 7.5, 10)
REQUEST_S = (0.01, 0.05, 0.1, 0.3, 0.5, 0.8, 1, 1.5, 2, 2.5, 5, 10, 15, 20, 30, 40, 50, 60, 120, 240, 480, 960)
TOKENS = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10000, 20000, 50000, 100000)
SAMPLES = (1, 2, 5, 10, 20, 50, 100)
LEFT = 499
"""The status of a request whose client left before there was one, as nginx has it."""


class Metrics:
    """One server's metrics. Event loop only."""

    def __init__(
        self,
        model_name: str,
        door: EngineDoor,
        config: SchedulerConfig,
        prefix: str,
        memory: MemoryUse,
    ) -> None:
        self.registry = CollectorRegistry(auto_describe=False)
        self._label = {"model_name": model_name}
        self._prefix = prefix

        def labelled(kind: Any, name: str, text: str, extra: tuple[str, ...] = (), **options: Any) -> Any:
            metric = kind(f"{prefix}:{name}", text, ("model_name", *extra), registry=self.registry, **options)
            return metric if extra else metric.labels(model_name)

        def histogram(name: str, text: str, buckets: tuple[float, ...]) -> Histogram:
            found: Histogram = labelled(Histogram, name, text, buckets=buckets)
            return found

        self.prompt_tokens = labelled(Counter, "prompt_tokens", "Prompt tokens of samples that were read to their end.")
        self._generated = 0
        self._generation_tokens = labelled(Counter, "generation_tokens", "Tokens generated.")
        self._success = labelled(Counter, "request_success", "Samples finished, by reason.", ("finished_reason",))
        self._rejected = labelled(Counter, "requests_rejected", "Requests refused before queueing.", ("reason",))
        self.aborted = labelled(Counter, "requests_aborted", "Requests whose client left.")
        self._http = labelled(Counter, "http_requests", "Answers, by route and status.", ("route", "status"))
        self.first_token_s = histogram("time_to_first_token_seconds", "Arrival to first token.", FIRST_TOKEN_S)
        self.next_token_s = histogram("inter_token_latency_seconds", "Between tokens of a sample.", NEXT_TOKEN_S)
        self.request_s = histogram("e2e_request_latency_seconds", "Arrival to last token.", REQUEST_S)
        self.queued_s = histogram("request_queue_time_seconds", "From the engine's door to the first step.", REQUEST_S)
        self.preparation_s = histogram("request_preparation_time_seconds", "Parsing and tokenising.", REQUEST_S)
        self.request_prompt_tokens = histogram("request_prompt_tokens", "Prompt tokens of a request.", TOKENS)
        self.request_generation_tokens = histogram("request_generation_tokens", "Tokens of a sample.", TOKENS)
        self.request_samples = histogram("request_params_n", "Samples asked for (n).", SAMPLES)
        for reason in get_args(FinishReason):
            self._success.labels(model_name, reason)
        self.registry.register(_EngineState(prefix, model_name, door, config, memory))
        ProcessCollector(registry=self.registry)
        ProcessCollector("engine", pid=lambda: door.process_id or "none", registry=self.registry)

    def page(self) -> bytes:
        """The exposition."""
        return generate_latest(self.registry)

    def generated(self) -> float:
        """Tokens generated so far."""
        return self._generated

    def count_generated(self, tokens: int) -> None:
        """Tokens came out of the engine."""
        self._generated += tokens
        self._generation_tokens.inc(tokens)

    def finished(self, reason: str) -> None:
        """A sample ended."""
        self._success.labels(**self._label, finished_reason=reason).inc()

    def rejected(self, reason: str) -> None:
        """A request was refused by the bounded queue."""
        self._rejected.labels(**self._label, reason=reason.replace(" ", "_")).inc()

    def answered(self, route: str | None, status: int) -> None:
        """A response went out (status 0: the client left first). Unknown routes share one label."""
        self._http.labels(**self._label, route=route or "other", status=str(status or LEFT)).inc()


class _EngineState:
    """Reads the scheduler's snapshot when the page is asked for."""

    def __init__(
        self, prefix: str, model_name: str, door: EngineDoor, config: SchedulerConfig, memory: MemoryUse
    ) -> None:
        self._prefix, self._model_name, self._door, self._config = prefix, model_name, door, config
        self._memory = memory

    def collect(self) -> Iterator[Metric]:
        now = self._door.counters
        total = max(now.total_blocks, 1)
        swap_bytes = self._memory.predicted.swap_bytes // max(now.swap_blocks, 1)
        gauges: tuple[tuple[str, str, float], ...] = (
            ("num_requests_running", "Sequences being computed.", now.running_requests),
            ("num_requests_waiting", "Sequences waiting.", now.waiting_requests),
            ("kv_cache_usage_perc", "Share of KV blocks in use, 0 to 1.", now.used_blocks / total),
            ("kv_blocks_total", "KV blocks.", now.total_blocks),
            ("kv_blocks_used", "KV blocks held by requests.", now.used_blocks),
            ("kv_blocks_cached", "Unheld KV blocks that keep a prefix.", now.cached_blocks),
            ("kv_blocks_kept", "KV blocks that a session or prompt module keeps, in use or not.", now.kept_blocks),
            ("kv_blocks_free", "KV blocks that hold nothing.", now.free_blocks),
            ("memory_predicted_bytes", "Most memory that was predicted.", self._memory.predicted.total_bytes),
            ("memory_peak_bytes", "Most memory in use so far, mapped weights included.", self._memory.peak_bytes()),
            ("swap_blocks_total", "Blocks of the swap space.", now.swap_blocks),
            ("swap_blocks_used", "Blocks of the swap space that something is found in.", now.swap_used_blocks),
        )
        for name, text, value in gauges:
            gauge = GaugeMetricFamily(f"{self._prefix}:{name}", text, labels=("model_name",))
            gauge.add_metric((self._model_name,), value)
            yield gauge
        counts = (
            ("prefix_cache_queries", "Prompt tokens looked up in the prefix cache.", now.prefix_query_tokens),
            ("prefix_cache_hits", "Prompt tokens taken from the prefix cache.", now.prefix_hit_tokens),
            ("kv_slots_reserved", "Token slots of KV blocks that requests took.", now.reserved_slots),
            ("kv_slots_unused", "Reserved token slots given back without ever holding a token.", now.unused_slots),
            ("num_preemptions", "Sequences sent back to the queue for lack of blocks.", now.preemptions),
            ("swapped_out_blocks", "KV blocks copied to the swap space.", now.swapped_out_blocks),
            ("swapped_in_blocks", "KV blocks copied back from the swap space.", now.swapped_in_blocks),
            (
                "swap_declined_blocks",
                "KV blocks found in the swap space and computed again because that was faster.",
                now.swap_declined_blocks,
            ),
            ("swapped_out_bytes", "Bytes copied to the swap space.", now.swapped_out_blocks * swap_bytes),
            ("swapped_in_bytes", "Bytes copied back from the swap space.", now.swapped_in_blocks * swap_bytes),
            ("engine_steps", "Steps computed.", now.steps),
            ("engine_restarts", "Engines started again after they had died.", self._door.restarts),
            (
                "kv_kept_blocks_swapped_out",
                "KV blocks of sessions and prompt modules that went to the second store.",
                now.kept_swapped_out_blocks,
            ),
            ("iteration_tokens", "Tokens computed, over all steps.", now.computed_tokens),
            ("log_lines_dropped", "Lines that standard error did not take in time.", dropped_lines()),
        )
        for name, text, count in counts:
            counter = CounterMetricFamily(f"{self._prefix}:{name}", text, labels=("model_name",))
            counter.add_metric((self._model_name,), count)
            yield counter
        info = InfoMetricFamily(f"{self._prefix}:cache_config", "The KV cache.", labels=("model_name",))
        facts = {
            "block_size": str(self._config.block_size),
            "num_gpu_blocks": str(self._config.num_blocks),
            "enable_prefix_caching": str(self._config.prefix_cache),
        }
        info.add_metric((self._model_name,), facts)
        yield info
