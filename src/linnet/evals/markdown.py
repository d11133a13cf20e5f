# SPDX-License-Identifier: Apache-2.0
"""A report as Markdown: the same numbers as the JSON, for people and model cards."""

from linnet.evals.report import AbilityRecord, Report
from linnet.evals.statistics import Interval


def interval(value: Interval, digits: int = 3, percent: bool = False) -> str:
    """``value [low, high]``, or the value alone where there is no interval."""
    scale, unit = (100, " %") if percent else (1, "")
    text = f"{value.value * scale:.{digits}f}{unit}"
    if value.low is None or value.high is None:
        return text
    return f"{text} [{value.low * scale:.{digits}f}, {value.high * scale:.{digits}f}]"


def markdown(report: Report) -> str:
    """Headline, text loss, abilities, what was measured."""
    parts = [f"# {report.candidate.name}", "", _headline(report), ""]
    parts += _text_loss(report)
    parts += _abilities(report)
    parts += _provenance(report)
    return "\n".join(parts) + "\n"


def _headline(report: Report) -> str:
    size = f"{report.candidate.bytes / 1e6:.2f} MB, {report.candidate.bits_per_weight:.2f} bits per weight"
    if report.reference is None:
        return f"{size}. No reference was given, so nothing is said about loss."
    share = report.candidate.bytes / report.reference.bytes
    worse = [ability.name for ability in report.abilities if ability.verdict == "worse"]
    loss = f"Significantly worse: {', '.join(worse)}." if worse else "No ability is significantly worse."
    return f"{size} ({share:.0%} of {report.reference.name}). {loss if report.abilities else ''}".rstrip()


def _text_loss(report: Report) -> list[str]:
    if report.text is None or report.perplexity is None:
        return []
    lines = [
        "## Text",
        "",
        f"{report.text.tokens:,} tokens of {report.text.name}, context {report.text.context}, "
        f"stride {report.text.stride}; 95 % intervals by bootstrap over windows.",
        "",
        "| measure | value |",
        "|---|---|",
        f"| perplexity | {interval(report.perplexity.candidate)} |",
    ]
    if report.perplexity.reference is not None and report.perplexity.ratio is not None:
        lines.append(f"| … of the reference | {interval(report.perplexity.reference)} |")
        lines.append(f"| ratio | {interval(report.perplexity.ratio, 4)} |")
    if report.divergence is not None:
        divergence = report.divergence
        lines.append(f"| KL mean (nats per token) | {interval(divergence.mean, 5)} |")
        lines.append(
            f"| KL median, p99, maximum | {divergence.median:.5f}, {divergence.p99:.5f}, {divergence.maximum:.5f} |"
        )
        lines.append(f"| same likeliest token | {interval(divergence.top1_agreement, 1, percent=True)} |")
        if divergence.noise_floor is not None:
            lines.append(f"| noise floor of KL (rounding alone) | {divergence.noise_floor:.6f} |")
    return [*lines, ""]


def _abilities(report: Report) -> list[str]:
    if not report.abilities:
        return []
    if report.reference is None:
        rows = [f"| {a.name} | {a.questions} | {interval(a.candidate, 1, True)} |" for a in report.abilities]
        return ["## Abilities", "", "| ability | questions | accuracy |", "|---|---|---|", *rows, ""]
    return [
        "## Abilities",
        "",
        "Paired on the same questions: McNemar's exact test, Holm-adjusted over the abilities, 5 %. The last column is",
        "the accuracy loss this many questions would reveal with 80 % power.",
        "",
        "| ability | questions | reference | this model | lost / gained | p (adjusted) | verdict | detectable |",
        "|---|---|---|---|---|---|---|---|",
        *[_ability_row(ability) for ability in report.abilities],
        "",
    ]


def _ability_row(ability: AbilityRecord) -> str:
    if ability.reference is None or ability.adjusted_p_value is None or ability.minimum_detectable_loss is None:
        raise ValueError(f"ability {ability.name} was not paired with a reference")
    return (
        f"| {ability.name} | {ability.questions} | {interval(ability.reference, 1, True)} "
        f"| {interval(ability.candidate, 1, True)} | {ability.lost} / {ability.gained} "
        f"| {ability.adjusted_p_value:.3g} | {ability.verdict} | {ability.minimum_detectable_loss:.1%} |"
    )


def _provenance(report: Report) -> list[str]:
    lines = ["## Measured", "", f"* linnet {report.linnet_version}, {report.created}"]
    for role, model in (("candidate", report.candidate), ("reference", report.reference)):
        if model is not None:
            lines.append(f"* {role}: {model.name}, sha256 {model.digest}, numerics {model.numerics}")
    if report.noise_floor_flips is not None:
        lines.append(f"* answers that rounding alone flips in the reference: {report.noise_floor_flips}")
    lines.append("* " + ", ".join(f"{key} {value}" for key, value in report.machine.items()))
    return lines
