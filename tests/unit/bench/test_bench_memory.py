# SPDX-License-Identifier: Apache-2.0
"""The law that bench/memory.py shows of larger models, on the bundled one: a server takes what it said it would."""

import pytest

import memory
from linnet import demo

REASON = "the processes themselves, four fifths of so small a model's memory, are measured where they run"


@pytest.mark.parametrize("engine", ["process", "thread"])
def test_a_server_takes_the_memory_that_its_first_line_says(engine: str) -> None:
    options = ["--engine", engine, "--kv-cache-memory", "16MiB", "--max-model-len", str(memory.CONTEXT)]
    found = memory.measure(demo.model_directory(), options)
    assert found["kv_bytes"] > 0.9 * (16 << 20)
    assert 0.95 < found["measured_over_predicted"] < 1.05, (found, REASON)
