# SPDX-License-Identifier: Apache-2.0
"""What bench/traces.py and bench/batching.py found, as pictures."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

PANELS = (
    ("mean_s", "mean completion time, s"),
    ("p99_s", "99th percentile of completion time, s"),
    ("modest_mean_s", "mean completion time of modest tenants, s"),
)


def draw(rows: Sequence[dict[str, Any]], file: Path) -> None:
    """Each figure over the load, a line for each policy."""
    pyplot = _pyplot()
    figure, axes = pyplot.subplots(1, len(PANELS), figsize=(12, 3.6), layout="constrained")
    for axis, (name, label) in zip(axes, PANELS, strict=True):
        for policy in dict.fromkeys(row["policy"] for row in rows):
            for world, style in (("virtual", "o-"), ("real", "x:")):
                points = [row for row in rows if (row["policy"], row["world"]) == (policy, world)]
                if points:
                    words = policy if world == "virtual" else f"{policy}, real"
                    axis.plot([row["load"] for row in points], [row[name] for row in points], style, label=words)
        axis.set(xlabel="load, share of capacity", title=label, yscale="log")
        for which in (axis.yaxis.set_major_formatter, axis.yaxis.set_minor_formatter):
            which("{x:g}")  # seconds, not powers of ten
        axis.title.set_fontsize(10)
        axis.grid(alpha=0.3)
    axes[0].legend(fontsize=8)
    figure.suptitle(f"{rows[0]['trace']}: {rows[0]['requests']} requests, {rows[0]['model']}", fontsize=10)
    figure.savefig(file, dpi=80)
    pyplot.close(figure)


def draw_batching(found: dict[str, Any], file: Path) -> None:
    """The curve of tokens a second against seconds between tokens over the batch size, and the ways of batching."""
    pyplot = _pyplot()
    figure, (curve, bars) = pyplot.subplots(1, 2, figsize=(10, 3.6), layout="constrained")
    for world, style in (("virtual", "o-"), ("real", "x:")):
        points = found.get(f"over_sizes.{world}", [])
        if points:
            between_ms = [1e3 * one["between_s"] for one in points]
            curve.plot(between_ms, [one["tokens_per_s"] for one in points], style, label=world)
    for one in found["over_sizes.virtual"]:
        curve.annotate(str(one["sequences"]), (1e3 * one["between_s"], one["tokens_per_s"]), fontsize=8)
    curve.set(xlabel="ms between tokens", ylabel="tokens a second", title="over the batch size")
    curve.legend(fontsize=8)
    curve.grid(alpha=0.3)
    bars.bar([one["way"] for one in found["ways"]], [one["per_s"] for one in found["ways"]])
    bars.set(ylabel="requests a second", title=f"with p99 within {found['ways'][0]['bound_s']:.3g} s")
    figure.suptitle(f"{found['trace']}, {found['model']}", fontsize=10)
    figure.savefig(file, dpi=80)
    pyplot.close(figure)


def _pyplot() -> Any:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    return pyplot
