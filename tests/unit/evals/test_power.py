# SPDX-License-Identifier: Apache-2.0
"""The detectable loss against simulation: planted losses of that size are found four times in five."""

import numpy as np
import pytest

from linnet.evals.power import detectable_loss
from linnet.evals.statistics import paired_test


@pytest.mark.parametrize(("count", "churn"), [(200, 0.0), (200, 0.1), (1000, 0.04)])
def test_the_detectable_loss_is_found_in_four_of_five_trials(count: int, churn: float) -> None:
    loss = detectable_loss(count, int(churn * count), 0.05)
    seed = 5
    generator = np.random.default_rng(seed)
    found = 0
    for _ in range(300):
        draw = generator.random(count)
        reference, candidate = np.ones(count, dtype=bool), np.ones(count, dtype=bool)
        candidate[draw < churn / 2 + loss] = False
        reference[draw > 1 - churn / 2] = False
        found += paired_test(reference, candidate).p_value < 0.05
    assert 0.74 <= found / 300 <= 0.87, f"{found} of 300, seed {seed}"


def test_more_questions_show_smaller_losses_and_five_show_none() -> None:
    assert detectable_loss(5, 0, 0.05) == 1.0
    losses = [detectable_loss(count, count // 20, 0.05) for count in (100, 400, 1600)]
    assert losses == sorted(losses, reverse=True)
    assert losses[-1] < 0.02


def test_sharing_the_significance_costs_resolution() -> None:
    assert detectable_loss(200, 10, 0.05 / 12) > detectable_loss(200, 10, 0.05)
