# SPDX-License-Identifier: Apache-2.0
"""What the times of many requests come to, and a picture of them."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from linnet.cli.bench.client import Answer

PERCENTILES = (50, 90, 99)
TIMES = {
    "ttft_s": "time to first token",
    "tpot_s": "time per further token",
    "latency_s": "whole answer",
}


@dataclass(frozen=True)
class Objective:
    """What a request must keep to count as good: seconds to its first token, and for each further one on average."""

    ttft_s: float
    tpot_s: float


def times(answer: Answer) -> dict[str, float]:
    """Of one answer, from when it was due: a client that is late by itself flatters nobody."""
    first = answer.pieces[0] if answer.pieces else answer.end_s
    further = max(answer.new_tokens - 1, 0)
    last = answer.pieces[-1] if answer.pieces else answer.end_s
    return {
        "ttft_s": first - answer.due_s,
        "tpot_s": (last - first) / further if further else 0.0,
        "latency_s": answer.end_s - answer.due_s,
    }


def percentile(values: Sequence[float], share: int) -> float:
    """The nearest rank (what ``share`` per cent of the values do not exceed); 0 of none."""
    ordered = sorted(values)
    return ordered[max(-(-len(ordered) * share // 100), 1) - 1] if ordered else 0.0


def figures(answers: Sequence[Answer], objective: Objective) -> dict[str, Any]:
    """Throughput, percentiles, and goodput: requests a second that kept both parts of the objective."""
    good = [one for one in answers if one.error is None]
    shown = [times(one) for one in good]
    began = min((one.due_s for one in answers), default=0.0)
    seconds = max(max((one.end_s for one in answers), default=0.0) - began, 1e-9)
    kept = sum(one["ttft_s"] <= objective.ttft_s and one["tpot_s"] <= objective.tpot_s for one in shown)
    found: dict[str, Any] = {
        "requests": len(answers),
        "failed": len(answers) - len(good),
        "errors": dict(Counter(one.error for one in answers if one.error is not None)),
        "seconds": seconds,
        "requests_per_s": len(good) / seconds,
        "prompt_tokens_per_s": sum(one.prompt_tokens for one in good) / seconds,
        "new_tokens_per_s": sum(one.new_tokens for one in good) / seconds,
        "goodput_per_s": kept / seconds,
        "good_share": kept / len(answers) if answers else 0.0,
        "latest_start_s": max((one.began_s - one.due_s for one in answers), default=0.0),
    }
    for name in TIMES:
        values = [one[name] for one in shown]
        found[name] = {f"p{share}": percentile(values, share) for share in PERCENTILES}
        found[name]["mean"] = sum(values) / len(values) if values else 0.0
    return found


def draw(answers: Sequence[Answer], found: dict[str, Any], title: str, file: Path) -> None:
    """How large a share of the requests took how long. Needs matplotlib."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    shown = [times(one) for one in answers if one.error is None]
    figure, axes = pyplot.subplots(1, len(TIMES), figsize=(11, 3.4), layout="constrained")
    for axis, (name, words) in zip(axes, TIMES.items(), strict=True):
        values = sorted(1000 * one[name] for one in shown)
        axis.step(values, [(index + 1) / len(values) for index in range(len(values))], where="post")
        for share in PERCENTILES:
            axis.axvline(1000 * found[name][f"p{share}"], color="0.6", linewidth=0.8, linestyle=":")
        axis.set(xlabel="ms", title=words, ylim=(0, 1.02))
        axis.grid(alpha=0.3)
    axes[0].set_ylabel("share of requests")
    figure.suptitle(title, fontsize=10)
    figure.savefig(file, dpi=80)
    pyplot.close(figure)
