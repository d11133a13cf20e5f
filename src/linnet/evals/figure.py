# SPDX-License-Identifier: Apache-2.0
"""One picture of a report: what text shows on the left, what questions show on the right. Needs linnet[report]."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from linnet.errors import UnsupportedError
from linnet.evals.markdown import detectable
from linnet.evals.report import AbilityRecord, Report
from linnet.evals.statistics import Interval
from linnet.extras import install_command

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import FigureBase

COLOURS = {"worse": "#c0392b", "same": "#2c3e50", "better": "#1e8449", None: "#2c3e50"}
REFERENCE = "#95a5a6"
ROW_INCHES, FRAME_INCHES = 0.42, 1.9


def draw(report: Report, path: Path) -> None:
    """Write a PNG: perplexity and KL where text was read, one row an ability where questions were asked."""
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise UnsupportedError(f"drawing needs matplotlib: {install_command('report')}") from error
    records = [*report.abilities, *([] if report.pooled is None else [report.pooled])]
    text, asked = report.perplexity is not None, bool(records)
    height = max(FRAME_INCHES + ROW_INCHES * len(records), 4.2 if report.divergence is not None else 2.6)
    figure = Figure(figsize=(11 if text and asked else 7.5, height), layout="constrained")
    left: FigureBase = figure
    right: FigureBase = figure
    if text and asked:
        halves = figure.subfigures(1, 2, squeeze=False, width_ratios=(4, 7))
        left, right = halves[0, 0], halves[0, 1]
    if text:
        _text_panels(left, report)
    if asked:
        _abilities(right.subplots(), records)
    figure.suptitle(_title(report), x=0.01, ha="left", fontsize=10)
    figure.savefig(path, dpi=150)


def _text_panels(figure: "FigureBase", report: Report) -> None:
    if report.divergence is None:
        _perplexity(figure.subplots(), report)
        return
    top, bottom = figure.subplots(2, 1, height_ratios=(2, 3))
    _perplexity(top, report)
    _divergence(bottom, report)


def _perplexity(axes: "Axes", report: Report) -> None:
    assert report.perplexity is not None
    rows = [("candidate", report.perplexity.candidate, "#2c3e50", True)]
    if report.perplexity.reference is not None:
        rows.append(("reference", report.perplexity.reference, REFERENCE, False))
    for row, (_, value, colour, filled) in enumerate(rows):
        _point(axes, value, row, colour, filled)
        axes.annotate(f"{value.value:.4g}", (value.value, row), (0, 7), textcoords="offset points", ha="center", size=8)
    axes.set_yticks(range(len(rows)), [name for name, *_ in rows])
    axes.set_ylim(-0.6, len(rows) - 0.3)
    axes.margins(x=0.25)
    ratio = report.perplexity.ratio
    axes.set_title("perplexity" + ("" if ratio is None else f": ratio {_numbers(ratio)}"), fontsize=9)
    _tidy(axes)


def _divergence(axes: "Axes", report: Report) -> None:
    """Mean, median and 99th percentile on a logarithmic axis, beside what rounding alone does."""
    divergence = report.divergence
    assert divergence is not None
    smallest = 1e-8
    rows = [("99th percentile", divergence.p99), ("median", divergence.median)]
    for row, (_, value) in enumerate(rows):
        axes.plot(max(value, smallest), row, "D", color="#2c3e50", ms=5)
    mean = divergence.mean.within(smallest, float("inf"))
    _point(axes, mean, len(rows), "#2c3e50", True)
    rows.append(("mean", divergence.mean.value))
    for row, (_, value) in enumerate(rows):
        place = (max(value, smallest), row)
        axes.annotate(f"{value:.2g}", place, (0, 7), textcoords="offset points", ha="center", size=8)
    axes.set_xscale("log")
    _label_few(axes)
    if divergence.noise_floor:
        axes.axvline(divergence.noise_floor, color="#e67e22", ls="--", lw=1)
        axes.annotate(
            f"rounding alone {divergence.noise_floor:.1g}",
            (divergence.noise_floor, -0.75),
            (4, 0),
            textcoords="offset points",
            color="#e67e22",
            size=8,
        )
    axes.set_yticks(range(len(rows)), [name for name, _ in rows])
    axes.set_ylim(-0.9, len(rows) - 0.4)
    axes.margins(x=0.2)
    axes.set_title(f"KL, nats per token; same likeliest token {divergence.top1_agreement.value:.1%}", fontsize=9)
    _tidy(axes)


def _abilities(axes: "Axes", records: Sequence[AbilityRecord]) -> None:
    """One row an ability with its count; the axis spans what was measured; guessing is a tick where it is in sight."""
    paired = any(record.reference is not None for record in records)
    shift = 0.17 if paired else 0.0
    for row, record in enumerate(reversed(records)):
        if record.reference is not None:
            _point(axes, record.reference.map(_percent), row + shift, REFERENCE, False)
        _point(axes, record.candidate.map(_percent), row - shift, COLOURS[record.verdict], True)
        axes.plot([100 * record.chance] * 2, [row - 0.3, row + 0.3], color="#e67e22", lw=1, ls=":")
        axes.annotate(
            detectable(record), (1.01, row), xycoords=("axes fraction", "data"), va="center", size=8, color="#555555"
        )
    axes.annotate("detectable\nloss", (1.01, 1.0), xycoords="axes fraction", va="bottom", size=8, color="#555555")
    labels = [f"{record.name.replace('_', ' ')} (n = {record.questions:,})" for record in reversed(records)]
    axes.set_yticks(range(len(records)), labels)
    axes.set_ylim(-0.6, len(records) - 0.4)
    bounds = [bound for record in records for bound in _ends(record.candidate) + _ends(record.reference)]
    margin = 0.04 * (max(bounds) - min(bounds)) + 0.5
    axes.set_xlim(min(bounds) - margin, max(bounds) + margin)
    axes.set_xlabel("right answers, %, with 95 % intervals")
    axes.legend(
        handles=_legend(paired), loc="lower center", bbox_to_anchor=(0.45, 1.0), ncols=5, fontsize=8, frameon=False
    )
    _tidy(axes)


def _ends(value: Interval | None) -> list[float]:
    """What must be seen of an accuracy, in percent."""
    return [] if value is None else [100 * b for b in (value.value, value.low, value.high) if b is not None]


def _legend(paired: bool) -> list:  # type: ignore[type-arg]
    from matplotlib.lines import Line2D

    chance = Line2D([], [], color="#e67e22", ls=":", label="guessing")
    if not paired:
        return [Line2D([], [], marker="o", ls="", color=COLOURS["same"], label="this model"), chance]
    words = ("worse", "same", "better")
    filled = [Line2D([], [], marker="o", ls="", color=COLOURS[word], label=word) for word in words]
    hollow = Line2D([], [], marker="o", ls="", mfc="white", mec=REFERENCE, label="reference")
    return [hollow, *filled, chance]


def _label_few(axes: "Axes") -> None:
    """Numbers at decades, and at their threes where there are few decades: matplotlib's own run into one another."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    low, high = axes.get_xlim()
    subs = (1.0, 3.0) if high < 300 * low else (1.0,)
    axes.xaxis.set_major_locator(LogLocator(subs=subs, numticks=6))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.xaxis.set_minor_formatter(NullFormatter())


def _point(axes: "Axes", value: Interval, row: float, colour: str, filled: bool) -> None:
    """The marker lies over its interval, white inside where it is hollow."""
    if value.low is not None and value.high is not None:
        axes.plot([value.low, value.high], [row, row], color=colour, lw=1.5, solid_capstyle="round", zorder=2)
    axes.plot(value.value, row, "o", mfc=colour if filled else "white", mec=colour, ms=6, zorder=3)


def _tidy(axes: "Axes") -> None:
    axes.grid(axis="x", alpha=0.3)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(labelsize=8)


def _percent(share: float) -> float:
    return 100 * share


def _numbers(value: Interval) -> str:
    if value.low is None or value.high is None:
        return f"{value.value:.4g} (no interval)"
    return f"{value.value:.4g} [{value.low:.4g}, {value.high:.4g}]"


def _title(report: Report) -> str:
    name = f"{report.candidate.name} ({report.candidate.bytes / 1e6:.1f} MB)"
    if report.reference is None:
        return name
    against = f"{name} against {report.reference.name} ({report.reference.bytes / 1e6:.1f} MB)"
    return against if report.judgement is None else f"{against}: {report.judgement.loss}"
