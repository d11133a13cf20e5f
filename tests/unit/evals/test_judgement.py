# SPDX-License-Identifier: Apache-2.0
"""The headline against planted models: a ruined one is never "nothing worse", a good word is earned by measuring."""

from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from linnet.evals.abilities import Answers
from linnet.evals.evaluate import Baseline, ability_records, pooled_record
from linnet.evals.judgement import judge
from linnet.evals.questions import Question, QuestionSet
from linnet.evals.report import AbilityRecord, DivergenceRecord, Judgement, PerplexityRecord, TextRecord
from linnet.evals.statistics import Interval, mean_interval

FLOOR = 0.0005
ABILITIES = 6
GOOD = "nothing worse seen"


def text_part(kl: float, windows: int, seed: int = 0) -> tuple[TextRecord, PerplexityRecord, DivergenceRecord]:
    """What reading so many windows finds for a candidate of this mean KL, whose perplexity rises by exp(KL)."""
    generator = np.random.default_rng(seed)
    samples = [kl * generator.gamma(2.0, 0.5, 256) for _ in range(windows)]
    mean = mean_interval(samples).within(0, float("inf"))
    ratio = mean.map(lambda loss: float(np.exp(min(loss, 700))))
    record = DivergenceRecord(mean, kl / 2, kl * 5, kl * 20, Interval(1 - kl / 10, None, None), FLOOR)
    return (
        TextRecord("t", "", 256 * windows, 512, 256, 1, windows),
        PerplexityRecord(ratio, Interval(1, 1, 1), ratio),
        record,
    )


def questions_part(
    count: int, lost: float = 0.0, churn: float = 0.0, accuracy: float = 0.7, seed: int = 0
) -> tuple[tuple[AbilityRecord, ...], AbilityRecord]:
    """``count`` questions of which a share is lost for good and a share (``churn``) falls anew, as rounding does."""
    generator = np.random.default_rng(seed)
    questions = tuple(
        Question(str(i), f"a{i % ABILITIES}", "choice", 0, prompt="x", choices=("a", "b", "c", "d"))
        for i in range(count)
    )
    right = generator.random(count) < accuracy
    ours = np.where(generator.random(count) < churn, generator.random(count) < accuracy, right)
    ours &= ~(generator.random(count) < lost)
    sets, answers = QuestionSet("planted", questions), Answers(ours, {})
    baseline = Baseline(Answers(right, {}), FLOOR, 0)
    return ability_records(sets, answers, baseline), pooled_record(sets, answers, baseline)


def judged(kl: float, windows: int, count: int, **questions: float) -> Judgement:
    text, perplexity, divergence = text_part(kl, windows)
    return judge(text, perplexity, divergence, *questions_part(count, **questions))


@settings(deadline=None, max_examples=40)
@given(st.floats(1.0, 20.0), st.integers(1, 64), st.integers(1, 300))
def test_a_ruined_model_is_called_so_however_little_was_measured(kl: float, windows: int, count: int) -> None:
    assert judged(kl, windows, count).loss == "ruined"
    assert judge(*text_part(kl, windows), (), None).loss == "ruined"


def test_not_a_number_is_no_small_loss() -> None:
    text, perplexity, divergence = text_part(float("nan"), 64)
    assert judge(text, perplexity, divergence, *questions_part(1800)).loss == "ruined"


def test_an_identical_model_measured_well_is_nothing_worse() -> None:
    judgement = judged(0.0, 64, 1800)
    assert judgement.loss == GOOD
    assert judgement.warnings == ()
    assert any("would have been seen" in finding for finding in judgement.findings)


@pytest.mark.parametrize(("windows", "count"), [(2, 1800), (1, 1800), (64, 12), (64, 60), (2, 12)])
def test_an_identical_model_measured_on_little_is_undecided(windows: int, count: int) -> None:
    judgement = judged(0.0, windows, count)
    assert judgement.loss == "undecided"
    assert judgement.warnings


def test_what_was_not_measured_is_not_nothing_worse() -> None:
    text, perplexity, divergence = text_part(0.0, 64)
    asked = questions_part(1800)
    assert judge(text, perplexity, divergence, (), None).loss == "undecided"
    assert judge(None, None, None, *asked).loss == "undecided"
    assert judge(None, None, None, (), None) == Judgement(
        "undecided",
        (),
        (
            "no text was read: nothing is known of KL and perplexity",
            "no questions were asked: nothing is known of abilities",
        ),
    )


def test_rounding_alone_is_rarely_called_a_loss() -> None:
    """Answers that fall anew, as often either way, and a KL of the noise floor: at most about 1 in 10 alarms (two
    families of tests at 5 % each)."""
    words = [
        judge(*text_part(FLOOR, 64, seed), *questions_part(1800, churn=0.02, seed=seed)).loss for seed in range(60)
    ]
    assert sum(word != GOOD for word in words) <= 10, words


@pytest.mark.parametrize(("kl", "word"), [(0.001, GOOD), (0.03, "slightly worse"), (0.3, "worse"), (3.0, "ruined")])
def test_kl_alone_decides_where_questions_see_nothing(kl: float, word: str) -> None:
    assert judged(kl, 64, 1800).loss == word


def test_lost_abilities_decide_where_kl_is_small() -> None:
    judgement = judged(0.001, 64, 1800, lost=0.08)
    assert judgement.loss == "worse"
    assert any("points" in finding for finding in judgement.findings)


def test_a_model_that_fell_to_chance_is_ruined() -> None:
    assert judged(0.001, 64, 1800, lost=0.66).loss == "ruined"


def test_an_original_at_chance_can_show_nothing() -> None:
    judgement = judged(0.0, 64, 1800, accuracy=0.25)
    assert judgement.loss == "undecided"
    assert any("at chance" in warning for warning in judgement.warnings)


def widths(samples: Sequence[np.ndarray]) -> float:
    interval = mean_interval(samples)
    assert interval.low is not None
    assert interval.high is not None
    return interval.high - interval.low


def test_two_windows_give_a_wide_interval_and_one_none() -> None:
    generator = np.random.default_rng(3)
    samples = [generator.normal(level, 0.1, 500) for level in (1.0, 1.1)]
    assert widths(samples) > 0.8, "Student's t with one degree of freedom"
    assert mean_interval(samples[:1]).low is None


@pytest.mark.parametrize("clusters", [2, 3, 5, 10, 19, 20, 40])
def test_intervals_cover_the_truth_however_few_the_clusters(clusters: int) -> None:
    """Windows differ (sd 0.3) more than tokens within them suggest; 95 % intervals hold the mean in 90 % and more."""
    generator = np.random.default_rng(clusters)
    covered = 0
    for _ in range(200):
        samples = [generator.normal(generator.normal(1.0, 0.3), 0.5, 50) for _ in range(clusters)]
        interval = mean_interval(samples)
        assert interval.low is not None
        assert interval.high is not None
        covered += interval.low <= 1.0 <= interval.high
    assert covered >= 178, f"{covered} of 200"
