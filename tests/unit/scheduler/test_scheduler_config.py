# SPDX-License-Identifier: Apache-2.0
"""Settings that cannot work are refused with the setting, its value and what is accepted."""

import subprocess
import sys

import pytest

from linnet.errors import ConfigError
from linnet.scheduler import SchedulerConfig


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"num_blocks": 0}, "num_blocks is 0; accepted is 1 or more"),
        ({"block_size": 0}, "block_size is 0"),
        ({"token_budget": 0}, "token_budget is 0"),
        ({"step_budget_s": 0.0}, "step_budget_s is 0.0; accepted is more than 0"),
        ({"step_budget_s": float("nan")}, "step_budget_s is nan"),
        ({"max_sequences": -1}, "max_sequences is -1"),
        ({"max_model_len": 0}, "max_model_len is 0"),
        ({"max_waiting_requests": -1}, "max_waiting_requests is -1; accepted is 0 or more"),
        ({"max_chunk_tokens": 0}, "max_chunk_tokens is 0"),
        ({"preempt_every": 0}, "preempt_every is 0"),
        ({"max_output_rows": 3, "max_sequences": 4}, "max_output_rows is 3; accepted is 4 or more"),
        ({"policy": "random"}, "'random'; accepted: fcfs, priority"),
        ({"reserve": "all"}, "'all'; accepted: none, past, limit"),
        ({"predict_length": "oracle"}, "'oracle'; accepted: past, limit"),
    ],
)
def test_refusals(fields: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        SchedulerConfig(**({"num_blocks": 4, "max_model_len": 32} | fields))  # type: ignore[arg-type]


def test_what_follows_from_the_settings() -> None:
    config = SchedulerConfig(num_blocks=4, max_model_len=32, token_budget=8, max_sequences=16)
    assert (config.chunk_tokens, config.output_rows) == (8, 16)
    config = SchedulerConfig(num_blocks=4, max_model_len=32, max_chunk_tokens=9999, max_output_rows=70)
    assert (config.chunk_tokens, config.output_rows) == (512, 70)


def test_the_room_is_standard_library_only() -> None:
    code = (
        "import sys, linnet.scheduler; "
        "top = {name.partition('.')[0] for name in sys.modules}; "
        "rooms = {name.split('.')[1] for name in sys.modules if name.startswith('linnet.')}; "
        "print(sorted(top - set(sys.stdlib_module_names) - {'linnet', '__main__'}), sorted(rooms))"
    )
    done = subprocess.run([sys.executable, "-S", "-c", code], capture_output=True, text=True, check=False)
    if "ModuleNotFoundError: No module named 'linnet'" in done.stderr:
        pytest.skip("linnet is installed in site-packages, which -S leaves out")
    assert done.stdout.strip() == "[] ['errors', 'scheduler']", done.stderr
