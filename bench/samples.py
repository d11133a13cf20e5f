# SPDX-License-Identifier: Apache-2.0
"""What becomes of samples: medians with ranges, ratios of neighbours in time, shares, tables. No clocks, no files."""

import math
import statistics
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Metric:
    """One number of a measure and how people read it."""

    name: str
    label: str
    unit: str
    higher_is_better: bool = True

    @property
    def scale(self) -> float:
        """Divides the stored number before it is shown."""
        return {"MB": 1e6, "ms": 1e-3}.get(self.unit, 1.0)


METRICS = {
    metric.name: metric
    for metric in (
        Metric("prefill_tokens_per_s", "prefill, 512 tokens", "tokens/s"),
        Metric("decode_tokens_per_s", "decode, 1 sequence", "tokens/s"),
        Metric("concurrent8_tokens_per_s", "8 sequences, prompts included", "tokens/s"),
        Metric("concurrent16_tokens_per_s", "16 sequences, prompts included", "tokens/s"),
        Metric("first_token_s", "process start to first token", "s", False),
        Metric("peak_rss_bytes", "peak memory, 1 sequence", "MB", False),
        Metric("prompt2k_s", "first token of a 2k prompt", "s", False),
        Metric("prompt8k_s", "first token of an 8k prompt", "s", False),
        Metric("noisy_decode_kept", "decode kept beside a busy neighbour", "of 1"),
        Metric("noisy_prefill_kept", "prefill kept beside a busy neighbour", "of 1"),
    )
}


@dataclass(frozen=True)
class Summary:
    """Median and range."""

    median: float
    low: float
    high: float
    count: int

    def show(self, digits: int = 3) -> str:
        """``48.1 [46.0-51.2]``; the range only where there is one."""
        middle = significant(self.median, digits)
        if self.count < 2:
            return middle
        return f"{middle} [{significant(self.low, digits)}-{significant(self.high, digits)}]"


def summarise(values: Iterable[float]) -> Summary:
    """Of at least one number."""
    found = sorted(values)
    return Summary(statistics.median(found), found[0], found[-1], len(found))


def significant(value: float, digits: int = 3) -> str:
    """So many significant digits without exponents; integers keep all of theirs."""
    if value == 0 or not math.isfinite(value):
        return str(value)
    places = max(digits - 1 - math.floor(math.log10(abs(value))), 0)
    return f"{value:,.{places}f}"


def ratios(ours: Sequence[float], theirs: Sequence[float], higher_is_better: bool) -> list[float]:
    """How many times better ours is, turn by turn: above 1 always favours ours. Only neighbours are divided."""
    pairs = zip(ours, theirs, strict=False)
    return [a / b if higher_is_better else b / a for a, b in pairs]


def rows_by_round(records: Sequence[dict], metric: str, side: str) -> dict[int, tuple[float, bool]]:
    """Round -> (value, clean) of one side; a later record of the same round replaces an earlier one."""
    return {
        record["round"]: (record["values"][metric], record.get("clean", True))
        for record in records
        if record["side"] == side and metric in record.get("values", {})
    }


@dataclass(frozen=True)
class Comparison:
    """One metric of one pairing."""

    ours: str
    theirs: str
    metric: Metric
    our_values: Summary
    their_values: Summary
    ratio: Summary
    clean: bool
    """Whether the rounds used were undisturbed; a disturbed one is used only where there is no other."""


def compare(records: Sequence[dict]) -> list[Comparison]:
    """Every (pairing, metric) that both sides have at least one common round of, in order of appearance."""
    pairings = dict.fromkeys((record["ours"], record["theirs"]) for record in records if record.get("theirs"))
    found = []
    for ours, theirs in pairings:
        here = [record for record in records if (record["ours"], record.get("theirs")) == (ours, theirs)]
        for metric in METRICS.values():
            a, b = rows_by_round(here, metric.name, "ours"), rows_by_round(here, metric.name, "theirs")
            common = sorted(a.keys() & b.keys())
            if not common:
                continue
            quiet = [i for i in common if a[i][1] and b[i][1]]
            mine, other = [a[i][0] for i in quiet or common], [b[i][0] for i in quiet or common]
            found.append(
                Comparison(
                    ours,
                    theirs,
                    metric,
                    summarise(mine),
                    summarise(other),
                    summarise(ratios(mine, other, metric.higher_is_better)),
                    bool(quiet),
                )
            )
    return found


def best_peers(comparisons: Sequence[Comparison]) -> list[Comparison]:
    """For each of ours and each metric, the comparison in which Linnet looks worst: the one against the best peer."""
    worst: dict[tuple[str, str], Comparison] = {}
    for one in comparisons:
        key = (one.ours, one.metric.name)
        if key not in worst or one.ratio.median < worst[key].ratio.median:
            worst[key] = one
    return list(worst.values())


def markdown(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def comparison_rows(comparisons: Sequence[Comparison], named: Callable[[Comparison], str]) -> list[list[str]]:
    """Table rows; ``named`` gives the first cell."""

    def shown(summary: Summary, metric: Metric) -> str:
        scale = metric.scale
        return Summary(summary.median / scale, summary.low / scale, summary.high / scale, summary.count).show()

    return [
        [
            named(one),
            f"{one.metric.label} ({one.metric.unit})",
            shown(one.our_values, one.metric),
            shown(one.their_values, one.metric),
            one.ratio.show() + ("" if one.clean else " (disturbed)"),
        ]
        for one in comparisons
    ]
