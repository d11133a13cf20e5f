# SPDX-License-Identifier: Apache-2.0
"""Who is told of every finished request: the log, where it is for machines, and a collector of traces."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

from linnet.errors import UnsupportedError
from linnet.extras import install_command
from linnet.logs import json_line
from linnet.serve.records import RequestRecord, Teller
from linnet.settings import ServeConfig

if TYPE_CHECKING:
    from linnet.serve.tracing import Traces


def check_traces(config: ServeConfig) -> None:
    """Raises UnsupportedError where traces are asked for and OpenTelemetry is not installed."""
    if config.otlp_traces_endpoint is not None:
        _kind_of_traces()


@asynccontextmanager
async def watchers(config: ServeConfig, say: Callable[[str], None]) -> AsyncIterator[list[Teller]]:
    """Those that the configuration asks for; ``say`` writes a line. Raises as ``check_traces`` does."""
    told: list[Teller] = []
    if config.log_json:

        def write(record: RequestRecord) -> None:
            say(json_line("request", record.facts()))

        told.append(write)
    if config.otlp_traces_endpoint is None:
        yield told
        return
    traces = _kind_of_traces()(config.otlp_traces_endpoint)
    try:
        yield [*told, traces.tell]
    finally:
        await asyncio.to_thread(traces.close)


def _kind_of_traces() -> "type[Traces]":
    try:
        from linnet.serve.tracing import Traces
    except ImportError as error:
        name = "otlp_traces_endpoint"
        raise UnsupportedError(f"{name} needs OpenTelemetry: {install_command('otel')}", settings=[name]) from error
    return Traces
