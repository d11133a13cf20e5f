# SPDX-License-Identifier: Apache-2.0
"""A report as Markdown: the same numbers as the JSON, for people and model cards."""

from linnet.evals.judgement import blind_abilities
from linnet.evals.report import AbilityRecord, Report, TextRecord
from linnet.evals.statistics import FEW_CLUSTERS, Interval


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
    size = f"{size} ({share:.0%} of {report.reference.name})."
    judgement = report.judgement
    if judgement is None:
        return size
    findings = "; ".join(judgement.findings) or "nothing was measured"
    word = f"**{judgement.loss.capitalize()}**"
    lines = [f"{word}: {findings}.", "", size]
    return "\n".join(lines + [f"\n**Warning:** {warning}." for warning in judgement.warnings])


def _text_loss(report: Report) -> list[str]:
    if report.text is None or report.perplexity is None:
        return []
    lines = [
        "## Text",
        "",
        f"{report.text.tokens:,} tokens of {report.text.name}, context {report.text.context}, "
        f"stride {report.text.stride}; {_intervals(report.text)}.",
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


def _intervals(text: TextRecord) -> str:
    """How the intervals were made, and what they speak of."""
    count = text.documents if text.clusters == "documents" else text.windows
    if count < 2:
        return "no intervals: they need at least two windows"
    how = "by bootstrap" if count >= FEW_CLUSTERS else "by Student's t (too few for a bootstrap)"
    if text.clusters == "documents":
        return f"95 % intervals {how} over {count} documents"
    whose = "this document" if text.documents == 1 else f"these {text.documents} documents"
    return f"95 % intervals {how} over {count} windows, so they speak of {whose} only"


def _abilities(report: Report) -> list[str]:
    if not report.abilities:
        return []
    records = [*report.abilities, *([] if report.pooled is None else [report.pooled])]
    lines = ["## Abilities", "", f"Questions: {report.questions or 'a set'}. {_explained(report)}", ""]
    if report.reference is None:
        lines += ["| ability | questions | guessing | accuracy | detectable |", "|---|---|---|---|---|"]
        lines += [_row_alone(record) for record in records]
    else:
        lines += [
            "| ability | questions | guessing | reference | this model | lost / gained | p | verdict | detectable |",
            "|---|---|---|---|---|---|---|---|---|",
        ]
        lines += [_row_paired(record) for record in records]
    if blind := blind_abilities(report.abilities):
        lines += ["", f"At chance, so that no loss can show: {', '.join(blind)}."]
    if report.questions_left_out:
        lines += ["", f"{report.questions_left_out:,} questions do not fit into the context and were left out."]
    return [*lines, ""]


def _explained(report: Report) -> str:
    if report.reference is None:
        return "*detectable*: the loss that a comparison on so many questions could show at best (80 % power)."
    return (
        "Paired on the same questions: McNemar's exact test, 5 %, Holm-adjusted over the abilities; *all* is a test of "
        "its own. *detectable*: the accuracy loss that would have been found with 80 % power."
    )


def _row_alone(ability: AbilityRecord) -> str:
    return (
        f"| {ability.name} | {ability.questions:,} | {ability.chance:.0%} | {interval(ability.candidate, 1, True)} "
        f"| {detectable(ability)} |"
    )


def _row_paired(ability: AbilityRecord) -> str:
    if ability.reference is None or ability.adjusted_p_value is None:
        raise ValueError(f"ability {ability.name} was not paired with a reference")
    return (
        f"| {ability.name} | {ability.questions:,} | {ability.chance:.0%} | {interval(ability.reference, 1, True)} "
        f"| {interval(ability.candidate, 1, True)} | {ability.lost} / {ability.gained} "
        f"| {ability.adjusted_p_value:.3g} | {ability.verdict} | {detectable(ability)} |"
    )


def detectable(ability: AbilityRecord) -> str:
    """The loss that would have been found, in words where there is none or none is known."""
    loss = ability.minimum_detectable_loss
    return "–" if loss is None else "none" if loss >= 1 else f"{loss:.1%}"


def _provenance(report: Report) -> list[str]:
    lines = ["## Measured", "", f"* linnet {report.linnet_version}, {report.created}"]
    for role, model in (("candidate", report.candidate), ("reference", report.reference)):
        if model is not None:
            lines.append(f"* {role}: {model.name}, sha256 {model.digest}, numerics {model.numerics}")
    if report.noise_floor_flips is not None:
        lines.append(f"* answers that rounding alone flips in the reference: {_flips(report)}")
    if report.questions_digest is not None:
        lines.append(f"* questions: {report.questions}, sha256 {report.questions_digest}")
    lines.append("* " + ", ".join(f"{key} {value}" for key, value in report.machine.items()))
    return lines


def _flips(report: Report) -> str:
    asked = report.noise_floor_questions
    return str(report.noise_floor_flips) if asked is None else f"{report.noise_floor_flips} of {asked:,}"
