# SPDX-License-Identifier: Apache-2.0
"""The statistics of loss against textbook values and against their own promises."""

import numpy as np
import pytest

from linnet.evals.statistics import bootstrap_interval, holm, paired_test, verdict, wilson_interval


def test_wilson_interval_matches_the_published_example() -> None:
    # Newcombe (1998), Statistics in Medicine 17, table I: 81 of 263 by Wilson's score method.
    interval = wilson_interval(81, 263)
    assert interval.low == pytest.approx(0.2553, abs=1e-4)
    assert interval.high == pytest.approx(0.3662, abs=1e-4)


def test_wilson_interval_needs_a_trial() -> None:
    with pytest.raises(ValueError, match="at least one trial"):
        wilson_interval(0, 0)


def test_paired_test_is_the_exact_binomial() -> None:
    reference = np.array([True] * 10 + [False] * 2 + [True] * 88)
    candidate = np.array([False] * 10 + [True] * 2 + [True] * 88)
    result = paired_test(reference, candidate)
    assert (result.lost, result.gained) == (10, 2)
    # 2 * sum_{k<=2} C(12, k) / 2^12 = 2 * (1 + 12 + 66) / 4096
    assert result.p_value == pytest.approx(2 * 79 / 4096)
    assert result.difference.value == pytest.approx(-0.08)
    assert result.difference.low is not None
    assert result.difference.high is not None
    assert result.difference.low < -0.08 < result.difference.high


def test_identical_answers_are_the_same_and_still_state_a_resolution() -> None:
    answers = np.ones(200, dtype=bool)
    result = paired_test(answers, answers)
    assert result.p_value == 1.0
    assert 0 < result.minimum_detectable_loss < 0.05
    assert verdict(result.difference.value, result.p_value) == "same"


def test_paired_test_refuses_unpaired_answers() -> None:
    with pytest.raises(ValueError, match="equal in number"):
        paired_test(np.ones(3, dtype=bool), np.ones(4, dtype=bool))


def test_holm_matches_a_worked_example() -> None:
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])


def test_false_alarms_stay_at_the_promised_rate() -> None:
    """Two models that flip answers at random differ 'significantly' in at most about 5 % of trials."""
    seed = 7
    generator = np.random.default_rng(seed)
    alarms = 0
    for _ in range(100):
        reference = generator.random(200) < 0.9
        flips = generator.random(200) < 0.05
        coin = generator.random(200) < 0.5
        candidate = np.where(flips, coin, reference)
        reference = np.where(flips, generator.random(200) < 0.5, reference)
        alarms += paired_test(reference, candidate).p_value < 0.05
    assert alarms <= 11, f"{alarms} alarms in 100 trials, seed {seed}"


def test_bootstrap_covers_the_true_mean() -> None:
    seed = 11
    generator = np.random.default_rng(seed)
    covered = 0
    for trial in range(100):
        clusters = [np.array([generator.normal(2.0, 1.0, 20).sum(), 20.0]) for _ in range(30)]
        interval = bootstrap_interval(clusters, lambda t: t[:, 0] / t[:, 1], seed=trial)
        covered += interval.low <= 2.0 <= interval.high
    assert covered >= 85, f"{covered} of 100 intervals cover the mean, seed {seed}"


def test_one_cluster_has_no_interval() -> None:
    interval = bootstrap_interval([np.array([3.0, 1.0])], lambda t: t[:, 0] / t[:, 1])
    assert interval.value == 3.0
    assert interval.low is None
    assert interval.high is None
