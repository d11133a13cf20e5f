# SPDX-License-Identifier: Apache-2.0
"""The headline: one word for what was lost, from KL, perplexity and abilities together, and what it rests on.

The rule and its reasons are in docs/evals.md. The worst finding decides. The good word, "nothing worse seen", has to
be earned: text and questions were measured, both finely enough that a loss worth speaking of would have shown.
"""

from collections.abc import Iterator, Sequence

from linnet.evals.report import AbilityRecord, DivergenceRecord, Judgement, Loss, PerplexityRecord, TextRecord
from linnet.evals.statistics import Interval
from linnet.evals.text_loss import ENOUGH_DOCUMENTS

NOISE_MULTIPLE = 3.0
"""The noise floor is itself a mean over few windows; a KL within thrice of it may be rounding."""
KL_SLIGHT, KL_WORSE, KL_RUINED = 0.01, 0.1, 1.0
"""Nats per token. By Pinsker's inequality at most sqrt(KL / 2) of sampled tokens differ: 7 %, 22 %, 71 %."""
RATIO_SLIGHT, RATIO_WORSE, RATIO_RUINED = 1.005, 1.05, 2.0
"""Perplexity against the original's."""
FINE_ENOUGH = 0.03
"""All questions together must be able to show a loss of three points."""

SEVERITY: tuple[Loss, ...] = ("nothing worse seen", "undecided", "slightly worse", "worse", "ruined")


def judge(
    text: TextRecord | None,
    perplexity: PerplexityRecord | None,
    divergence: DivergenceRecord | None,
    abilities: Sequence[AbilityRecord],
    pooled: AbilityRecord | None,
) -> Judgement:
    """The word, the findings behind it, and warnings about what the measurement could not see. Needs a reference."""
    findings: list[tuple[Loss, str]] = [*_text_findings(perplexity, divergence), *_ability_findings(abilities, pooled)]
    warnings = tuple(_warnings(text, divergence, abilities, pooled))
    if warnings:
        findings.append(("undecided", ""))
    worst = max((loss for loss, _ in findings), key=SEVERITY.index)
    return Judgement(worst, tuple(sentence for _, sentence in findings if sentence), warnings)


def _text_findings(
    perplexity: PerplexityRecord | None, divergence: DivergenceRecord | None
) -> Iterator[tuple[Loss, str]]:
    if divergence is not None:
        mean, floor = divergence.mean, divergence.noise_floor or 0.0
        loss = _grade(mean.value, (max(KL_SLIGHT, NOISE_MULTIPLE * floor), KL_WORSE, KL_RUINED))
        noise = f", rounding alone {floor:.2g}" if divergence.noise_floor is not None else ""
        yield loss, f"KL {mean.value:.3g} nats per token{_bounds(mean)}{noise}"
    if perplexity is not None and perplexity.ratio is not None:
        ratio = perplexity.ratio
        sure = ratio.value if ratio.low is None else ratio.low
        loss = "ruined" if ratio.value >= RATIO_RUINED else _grade(sure, (RATIO_SLIGHT, RATIO_WORSE, float("inf")))
        yield loss, f"perplexity × {ratio.value:.4g}{_bounds(ratio)}"


def _grade(value: float, thresholds: tuple[float, float, float]) -> Loss:
    slight, worse, ruined = thresholds
    if not value < ruined:  # NaN is no small loss
        return "ruined"
    return "worse" if value >= worse else "slightly worse" if value > slight else "nothing worse seen"


def _ability_findings(abilities: Sequence[AbilityRecord], pooled: AbilityRecord | None) -> Iterator[tuple[Loss, str]]:
    if pooled is not None and pooled.reference is not None:
        points = 100 * (pooled.candidate.value - pooled.reference.value)
        loss: Loss = "worse" if pooled.verdict == "worse" else "nothing worse seen"
        if pooled.at_chance and not _at_chance(pooled.reference, pooled.chance):
            loss = "ruined"
        yield loss, f"all {pooled.questions:,} questions {points:+.1f} points ({_seen(pooled)})"
    if worse := [ability.name for ability in abilities if ability.verdict == "worse"]:
        yield "worse", f"significantly worse: {', '.join(worse)}"
    elif abilities:
        yield "nothing worse seen", "no single ability significantly worse"


def _warnings(
    text: TextRecord | None,
    divergence: DivergenceRecord | None,
    abilities: Sequence[AbilityRecord],
    pooled: AbilityRecord | None,
) -> Iterator[str]:
    if text is None or divergence is None:
        yield "no text was read: nothing is known of KL and perplexity"
    elif text.windows < ENOUGH_DOCUMENTS:
        yield (
            f"only {text.windows} window{'s' * (text.windows != 1)} of text were read; {ENOUGH_DOCUMENTS} or more are "
            "needed to know how much texts differ"
        )
    if pooled is None:
        yield "no questions were asked: nothing is known of abilities"
        return
    if pooled.minimum_detectable_loss is not None and pooled.minimum_detectable_loss > FINE_ENOUGH:
        yield f"{pooled.questions:,} questions are too few: {_seen(pooled)}"
    blind = [ability.name for ability in abilities if _at_chance(ability.reference, ability.chance)]
    if len(blind) == len(abilities):
        yield "the original answers at chance: these questions can show no loss of this model"


def blind_abilities(abilities: Sequence[AbilityRecord]) -> list[str]:
    """Abilities that the model measured from (the original; alone, the model itself) has no more than chance has."""
    return [a.name for a in abilities if _at_chance(a.candidate if a.reference is None else a.reference, a.chance)]


def _at_chance(accuracy: Interval | None, chance: float) -> bool:
    return accuracy is not None and accuracy.low is not None and accuracy.low <= chance


def _seen(pooled: AbilityRecord) -> str:
    loss = pooled.minimum_detectable_loss
    if loss is None or loss >= 1:
        return "no loss at all could have been shown"
    return f"a loss of {100 * loss:.1f} points would have been seen"


def _bounds(interval: Interval) -> str:
    if interval.low is None or interval.high is None:
        return " (no interval)"
    return f" [{interval.low:.4g}, {interval.high:.4g}]"
