# SPDX-License-Identifier: Apache-2.0
"""OpenAI-compatible HTTP over one engine: bounded, honest about its health, private by default."""

from linnet.serve.app import Server, build_server
from linnet.serve.batch import BatchCounts, BatchInterrupted, run_batch
from linnet.serve.batch_files import Answers, Requests
from linnet.serve.run import address_of, bind, release, run
from linnet.serve.watching import check_traces
from linnet.settings import RequestLimits, ServeConfig

__all__ = [
    "Answers",
    "BatchCounts",
    "BatchInterrupted",
    "RequestLimits",
    "Requests",
    "ServeConfig",
    "Server",
    "address_of",
    "bind",
    "build_server",
    "check_traces",
    "release",
    "run",
    "run_batch",
]
