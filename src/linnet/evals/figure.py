# SPDX-License-Identifier: Apache-2.0
"""One picture of a report: abilities of candidate and reference with their intervals. Needs linnet[report]."""

from pathlib import Path

from linnet.errors import UnsupportedError
from linnet.evals.report import Report
from linnet.extras import install_command

COLOURS = {"worse": "#c0392b", "same": "#2c3e50", "better": "#1e8449", None: "#2c3e50"}


def draw(report: Report, path: Path) -> None:
    """Write a PNG: one row an ability, reference hollow, candidate filled and coloured by verdict."""
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise UnsupportedError(f"drawing needs matplotlib: {install_command('report')}") from error
    if not report.abilities:
        raise UnsupportedError("there is nothing to draw: the report has no abilities")
    height = 1.4 + 0.42 * len(report.abilities)
    figure = Figure(figsize=(8, height), layout="constrained")
    axes = figure.subplots()
    for row, ability in enumerate(reversed(report.abilities)):
        if ability.reference is not None:
            axes.plot(100 * ability.reference.value, row + 0.14, "o", mfc="white", mec="#7f8c8d", ms=6)
            _bar(axes, ability.reference, row + 0.14, "#bdc3c7")
        colour = COLOURS[ability.verdict]
        _bar(axes, ability.candidate, row - 0.14, colour)
        axes.plot(100 * ability.candidate.value, row - 0.14, "o", color=colour, ms=6)
    axes.set_yticks(range(len(report.abilities)), [ability.name for ability in reversed(report.abilities)])
    axes.set_xlim(0, 102)
    axes.set_xlabel("right answers, % (95 % interval)")
    axes.grid(axis="x", alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    axes.set_title(_title(report), loc="left", fontsize=10)
    figure.savefig(path, dpi=150)


def _bar(axes, interval, row: float, colour: str) -> None:  # type: ignore[no-untyped-def]
    axes.plot([100 * interval.low, 100 * interval.high], [row, row], color=colour, lw=2, solid_capstyle="round")


def _title(report: Report) -> str:
    name = f"{report.candidate.name}: {report.candidate.bytes / 1e6:.1f} MB"
    if report.reference is None:
        return name
    parts = [name, f"hollow: {report.reference.name}, {report.reference.bytes / 1e6:.1f} MB"]
    if report.divergence is not None:
        parts.append(f"KL {report.divergence.mean.value:.4f}")
    return "   ".join(parts) + "   (red: significantly worse)"
