# SPDX-License-Identifier: Apache-2.0
"""From the lines of a run to a page and a picture."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from peers.catalogue import LINNET, PEERS, Contender, Places
from samples import Comparison, best_peers, compare, comparison_rows, markdown, significant, summarise

HEADER = ("Linnet \\| peer", "measure", "Linnet, median [range]", "peer, median [range]", "times better [range]")


def read(file: Path) -> list[dict[str, Any]]:
    """All whole lines; a line cut short by a killed run is left out."""
    records = []
    for line in file.read_text(encoding="utf-8").splitlines() if file.exists() else ():
        try:
            records.append(json.loads(line))
        except json.JSONDecodeError:
            continue
    return records


def key_of(record: dict[str, Any]) -> tuple[str, str | None, str, int, str]:
    """What makes two lines the same sample."""
    return record["ours"], record["theirs"], record["measure"], record["round"], record["side"]


def stored_bytes(path: Path) -> int:
    """The weights as they lie on disk: a file, or the weight files of a directory."""
    if path.is_file():
        return path.stat().st_size
    kinds = (".safetensors", ".bin", ".data", ".onnx")
    return sum(file.stat().st_size for file in path.iterdir() if file.suffix in kinds)


def size_rows(records: Sequence[dict[str, Any]], places: Places) -> list[list[str]]:
    """Bytes of every contender, and the bandwidth its decoding pulls if a token reads the file once."""
    rows = []
    for contender, side in _seen(records):
        model = places.model(contender)
        if not model.exists():
            continue
        size = stored_bytes(model)
        name = "ours" if side == "ours" else "theirs"
        wanted = contender.weights if side == "ours" else contender.name
        found = [
            (record["values"]["decode_tokens_per_s"], record["probe"]["read_bytes_per_s"])
            for record in records
            if record["side"] == side and record[name] == wanted and "decode_tokens_per_s" in record["values"]
        ]
        share = summarise(size * rate / read for rate, read in found) if found else None
        rows.append([contender.name, significant(size / 1e9), "" if share is None else share.show()])
    return rows


def _seen(records: Sequence[dict[str, Any]]) -> list[tuple[Contender, str]]:
    ours = dict.fromkeys(record["ours"] for record in records if record["side"] == "ours")
    theirs = dict.fromkeys(record["theirs"] for record in records if record["side"] == "theirs")
    return [(LINNET[name], "ours") for name in ours] + [(PEERS[name], "theirs") for name in theirs]


def alone_rows(records: Sequence[dict[str, Any]]) -> list[list[str]]:
    """What only Linnet was asked."""
    found: dict[tuple[str, str], list[float]] = {}
    for record in records:
        if record["measure"] == "arrival":
            for name, value in record["values"].items():
                found.setdefault((record["ours"], name), []).append(value)
    return [[ours, name.replace("_", " "), summarise(values).show()] for (ours, name), values in found.items()]


def page(records: Sequence[dict[str, Any]], places: Places, machine: str) -> str:
    """The report as Markdown."""
    samples = [record for record in records if record.get("values") and record.get("shape") == places.shape]
    if not samples:
        return "Nothing was measured yet.\n"
    comparisons = compare(samples)
    probes = {
        name: summarise(record["probe"][name] / 1e9 for record in samples)
        for name in ("read_bytes_per_s", "int8_macs_per_s")
    }
    disturbed = sum(not record["clean"] for record in samples)
    parts = [
        f"# Linnet beside its peers: {places.shape}",
        f"{len(samples)} samples in turns, {machine}. Read bandwidth {probes['read_bytes_per_s'].show()} GB/s, int8 "
        f"peak {probes['int8_macs_per_s'].show()} GMAC/s, probed around every sample. {disturbed} samples were "
        "disturbed in every try (foreign load, or the bandwidth changed) and count only where there is no other. "
        "*Times better*: median of the ratios of neighbouring samples; above 1, Linnet is ahead.",
        "## Against the best peer",
        "The peer against which the ratio is smallest, of those measured.",
        markdown(HEADER, comparison_rows(best_peers(comparisons), _named)),
        "## Every pairing",
        markdown(HEADER, comparison_rows(comparisons, _named)),
        "## Bytes",
        markdown(("engine", "GB on disk", "GB x tokens/s as a share of the probe"), size_rows(samples, places)),
    ]
    if rows := alone_rows(samples):
        parts += [
            "## A long prompt arrives while eight sequences decode",
            markdown(("Linnet", "number", "value"), rows),
        ]
    skipped: dict[tuple[str, str], str] = {}
    for record in records:
        pair = record["ours"], record["theirs"]
        if record.get("skipped"):
            skipped[pair] = record["skipped"]
        else:
            skipped.pop(pair, None)  # a later run could
    if skipped:
        parts += ["## Not measured", "\n".join(f"- {a} | {b}: {why}" for (a, b), why in skipped.items())]
    return "\n\n".join(parts) + "\n"


def _named(one: Comparison) -> str:
    return f"{one.ours} \\| {one.theirs}"


def picture(comparisons: Sequence[Comparison], file: Path) -> None:
    """One panel per measure, one bar per pairing, whiskers from smallest to largest ratio."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    metrics = list(dict.fromkeys(one.metric for one in comparisons))
    columns = min(len(metrics), 3)
    rows = -(-len(metrics) // columns)
    most = max(sum(one.metric == metric for one in comparisons) for metric in metrics)
    figure, axes = pyplot.subplots(
        rows, columns, figsize=(5.4 * columns, (0.3 * most + 0.9) * rows), squeeze=False, layout="constrained"
    )
    for axis in axes.flat[len(metrics) :]:
        axis.remove()
    for axis, metric in zip(axes.flat, metrics, strict=False):
        here = [one for one in comparisons if one.metric == metric]
        middles = [one.ratio.median for one in here]
        below = [one.ratio.median - one.ratio.low for one in here]
        above = [one.ratio.high - one.ratio.median for one in here]
        colours = ["#2a7f62" if middle >= 1 else "#b5533c" for middle in middles]
        axis.barh(
            [_named(one).replace("\\", "") for one in here], middles, xerr=[below, above], color=colours, height=0.7
        )
        axis.axvline(1, color="black", linewidth=0.8)
        axis.invert_yaxis()
        axis.set_xlim(left=0)
        axis.set_title(metric.label, fontsize=10)
        axis.tick_params(labelsize=8)
    figure.suptitle("times better than the peer, same run (whiskers: smallest and largest ratio)", fontsize=11)
    figure.savefig(file, dpi=130)
    pyplot.close(figure)


def make(folder: Path, places: Places, machine: str) -> str:
    """Write report.md and ratios.png from the folder's lines; returns the page."""
    records = read(folder / "samples.jsonl")
    text = page(records, places, machine)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "report.md").write_text(text, encoding="utf-8")
    comparisons = compare([record for record in records if record.get("values")])
    if comparisons:
        picture(comparisons, folder / "ratios.png")
    return text
