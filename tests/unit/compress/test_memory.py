# SPDX-License-Identifier: Apache-2.0
"""What one tried block says of a run's memory, and what it cannot say."""

from linnet.compress.memory import GROWTH_BYTES, Prediction
from linnet.compress.preflight import _memory


def test_a_table_dearer_than_the_tried_block_counts() -> None:
    predicted = Prediction(base=100, block=10, statistics=0, fit=10, activations=0, table=5_000)
    assert _memory(predicted, before=100, peak=200) == 100 + GROWTH_BYTES + 5_000
    assert _memory(predicted, before=100, peak=GROWTH_BYTES + 9_000) == GROWTH_BYTES + 9_000
