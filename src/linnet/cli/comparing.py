# SPDX-License-Identifier: Apache-2.0
"""The demo's table: one column a model, so that what each bit costs reads from left to right."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from rich import box
from rich.table import Table
from rich.text import Text

from linnet.cli.numbers import human_bytes

if TYPE_CHECKING:
    from linnet.evals import AbilityRecord, Report

STYLES = {"worse": "bold red", "same": "green", "better": "bold blue"}
SIGNS = {"worse": "▼", "same": "=", "better": "▲"}


@dataclass(frozen=True)
class Row:
    """One compressed model: its report against the original and its decoding speed."""

    title: str
    report: "Report"
    tokens_per_s: float

    @property
    def original_bytes(self) -> int:
        return 0 if self.report.reference is None else self.report.reference.bytes


def table(rows: Sequence[Row], original_tokens_per_s: float) -> Table:
    """Measures down, models across; every score carries the verdict of its paired test."""
    from linnet.evals.markdown import detectable

    first = rows[0].report
    if first.reference is None or first.perplexity is None or first.perplexity.reference is None:
        raise ValueError("the comparison needs reports against the original")
    result = Table(
        title="[bold]What compression cost[/]",
        caption=(
            "▼ worse  = same  ▲ better: paired test on the same questions, Holm-adjusted, 5 %\n"
            "± KL that a change of rounding alone makes\n"
            "detectable: the loss over all questions that would have been found with 80 % power"
        ),
        box=box.SIMPLE_HEAD,
        header_style="bold",
        caption_style="dim",
        pad_edge=False,
    )
    result.add_column("")
    result.add_column("original", justify="right", style="dim")
    for row in rows:
        result.add_column(row.title, justify="right")
    original = first.reference
    result.add_row("size", human_bytes(original.bytes), *[human_bytes(row.report.candidate.bytes) for row in rows])
    result.add_row(
        "bits per weight",
        f"{original.bits_per_weight:.2f}",
        *[f"{row.report.candidate.bits_per_weight:.2f}" for row in rows],
    )
    perplexities = [row.report.perplexity.candidate.value for row in rows if row.report.perplexity is not None]
    result.add_row("perplexity", f"{first.perplexity.reference.value:.3f}", *[f"{value:.3f}" for value in perplexities])
    divergences = [row.report.divergence for row in rows if row.report.divergence is not None]
    floor = divergences[0].noise_floor
    result.add_row(
        "KL (nats/token)", "–" if floor is None else f"± {floor:.1e}", *[f"{d.mean.value:.2g}" for d in divergences]
    )
    result.add_row("same top token", "", *[f"{d.top1_agreement.value:.1%}" for d in divergences], end_section=True)
    for index, ability in enumerate(first.abilities):
        reference = ability.reference
        cells = [_score(row.report, index) for row in rows]
        value = "" if reference is None else f"{reference.value:.1%}"
        result.add_row(ability.name.replace("_", " "), value, *cells)
    pooled = [row.report.pooled for row in rows if row.report.pooled is not None]
    if pooled and pooled[0].reference is not None:
        result.add_row("all questions", f"{pooled[0].reference.value:.1%}", *map(_cell, pooled))
        result.add_row("detectable loss", "", *[f"{detectable(record)}" for record in pooled], end_section=True)
    result.add_row("tokens/s", f"{original_tokens_per_s:,.0f}", *[f"{row.tokens_per_s:,.0f}" for row in rows])
    return result


def _score(report: "Report", index: int) -> Text:
    return _cell(report.abilities[index])


def _cell(ability: "AbilityRecord") -> Text:
    verdict = ability.verdict or "same"
    return Text(f"{ability.candidate.value:.1%} {SIGNS[verdict]}", style=STYLES[verdict])
