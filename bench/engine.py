# SPDX-License-Identifier: Apache-2.0
"""Linnet against the machine's own limits, no peers, under five minutes: what `make bench-quick` runs.

    python bench/engine.py [--shape llama-3.2-1b] [--scheme W4A16-head8] [--rounds 3] [--context 8192] [--json FILE]

Makes (once, in --work) a random-weight checkpoint of a real shape and compresses it. Then: `linnet generate` from
process start to first token; decode, prefill and 8 and 16 sequences in a process that opens the model as `linnet
serve` does, read bandwidth and int8 peak probed around every sample; where a step goes at 1, 32 and 64 sequences; where
it goes behind a long context. A sample taken while other processes used more than a tenth of a core, or while a limit
moved by more than 15 %, is repeated.
Prints tables and, as the last line, one JSON object.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

import startup
from foreign import MOST_CORES, undisturbed
from limits import MachineLimits, Probe
from linnet.backends.interface import Limits
from linnet.formats import Checkpoint
from linnet.models import load_model
from linnet.plan import Ledger, predict
from measures import DECODE_PROMPT, DECODE_TOKENS, MEASURES, memory
from process import EngineProcess
from samples import METRICS, significant, summarise

HERE = Path(__file__).resolve().parent
BATCHES = (1, 32, 64)
PARTS = ("matrix kernels", "attention", "other ops", "call", "sampling", "scheduling", "copying", "detokenising")
"""Of a step, in the order shown. The first three are the model itself; all else is overhead."""

Samples = dict[str, list[float]]


def prepare(work: Path, shape: str, scheme: str) -> Path:
    """The compressed checkpoint, made where it is missing."""
    dense, packed = work / shape, work / f"{shape}-{scheme}"
    if not packed.exists():
        if not dense.exists():
            subprocess.run([sys.executable, str(HERE / "make_model.py"), shape, str(dense)], check=True)
        command = [sys.executable, "-m", "linnet.cli.main", "compress", str(dense), "-o", str(packed)]
        subprocess.run([*command, "--scheme", scheme, "--algorithm", "rtn"], check=True)
    return packed


def measure(engine: EngineProcess, limits: MachineLimits, rounds: int) -> Samples:
    """Round by round, every measure with the limits probed around it; the limits' names carry the measure's."""
    found: Samples = {}
    chosen = ("decode", "prefill", "concurrent8", "concurrent16")
    for name in chosen:
        engine.generate(*MEASURES[name].warm)
    for _ in range(rounds):
        for name in chosen:

            def sample(name: str = name) -> tuple[Probe, dict[str, float]]:
                return Probe.around(limits, lambda: MEASURES[name].run(engine))

            (probe, values), cores = undisturbed(sample, drift=lambda found: found[0].drift)
            probes = {f"{name}.read": probe.read_bytes_per_s, f"{name}.int8": probe.int8_macs_per_s}
            for key, value in {**values, **probes, f"{name}.drift": probe.drift, "foreign_cores": cores}.items():
                found.setdefault(key, []).append(value)
    return found


def ledger_of(packed: Path) -> tuple[Ledger, int]:
    """What a step reads and multiplies, and the checkpoint's bytes."""
    with Checkpoint.open(packed, verify=False) as checkpoint:
        return predict(load_model(checkpoint), Limits(512, 1, 1, 16, 64), "fast"), checkpoint.nbytes


def shares(found: Samples, ledger: Ledger) -> dict[str, float]:
    """Medians of quotients with the probe of the same sample."""
    context = DECODE_PROMPT + DECODE_TOKENS // 2
    step_bytes = ledger.step_weight_bytes + ledger.kv_bytes_read(context)
    decode = zip(found["decode_tokens_per_s"], found["decode.read"], strict=True)
    prefill = zip(found["prefill_tokens_per_s"], found["prefill.int8"], strict=True)
    return {
        "decode_bandwidth_share": statistics.median(step_bytes * rate / read for rate, read in decode),
        "prefill_int8_share": statistics.median(ledger.prompt_multiplications * rate / peak for rate, peak in prefill),
    }


def overhead(parts: dict[str, float], total: float) -> float:
    """Share of a step that is not the model's own operations."""
    return 1 - sum(parts.get(name, 0.0) for name in PARTS[:3]) / total


def breakdown_table(found: dict[str, dict[str, Any]]) -> Table:
    """One column per batch: microseconds of a step and their share."""
    shown = Table("part of a step", *found, title="where a decode step goes, µs (share)")
    for part in (*PARTS, "rest of the loop", "step"):
        cells = []
        for one in found.values():
            total, parts = one["total_s"], one["parts_s"]
            named = {"step": total, "rest of the loop": total - sum(parts.values())}
            seconds = named.get(part, parts.get(part, 0.0))
            cells.append(f"{1e6 * seconds / one['steps']:,.0f} ({seconds / total:.1%})")
        shown.add_row(part, *cells)
    shown.add_row("overhead", *(f"{overhead(one['parts_s'], one['total_s']):.1%}" for one in found.values()))
    return shown


def long_context(engine: EngineProcess, limits: MachineLimits, ledger: Ledger, tokens: int) -> dict[str, Any]:
    """A decode step behind a long prompt: attention's share of the read bandwidth, over the KV bytes alone."""
    request = {"measure": "breakdown", "sequences": 1, "prompt": tokens, "steps": 32}
    probe, found = Probe.around(limits, lambda: engine.ask(request))
    kv_bytes = ledger.kv_bytes_read(tokens) * found["steps"]
    return {**found, "kv_bandwidth_share": kv_bytes / found["parts_s"]["attention"] / probe.read_bytes_per_s}


def summary_table(result: dict[str, Any], found: Samples) -> Table:
    """What was measured, for people."""
    shown = Table("measure", "median [min-max]", title=f"{result['shape']} {result['scheme']}")
    for name, metric in METRICS.items():
        if name in found:
            shown.add_row(f"{metric.label} ({metric.unit})", summarise(v / metric.scale for v in found[name]).show())
    for name, unit in (
        ("first_token_cold_s", "s"),
        ("first_token_first_time_s", "s"),
        ("checkpoint_bytes", "bytes"),
        ("foreign_cores", "cores"),
    ):
        shown.add_row(f"{name.replace('_', ' ')} ({unit})", significant(result[name]))
    for name in ("decode_bandwidth_share", "prefill_int8_share", "overhead_share", "kv_bandwidth_share"):
        if name in result:
            shown.add_row(name.replace("_", " "), f"{result[name]:.1%}")
    shown.add_row("read bandwidth (GB/s)", summarise(v / 1e9 for v in found["decode.read"]).show())
    shown.add_row("int8 peak (GMAC/s)", summarise(v / 1e9 for v in found["prefill.int8"]).show())
    return shown


def run(options: argparse.Namespace, packed: Path, log: Path) -> tuple[dict[str, Any], Samples, list[Table]]:
    """All measurements, in the order of the module's text."""
    limits = MachineLimits()
    ledger, size = ledger_of(packed)
    text = startup.prompt_text(packed)
    first_time = startup.first_token_s(packed, text)  # may lay weights out anew, once per machine
    startup.forget_pages(packed)
    cold = startup.first_token_s(packed, text)
    starts = [undisturbed(lambda: startup.first_token_s(packed, text))[0] for _ in range(options.rounds + 2)]
    with EngineProcess("linnet", packed, log) as engine:
        peak = memory(engine)["peak_rss_bytes"]
    with EngineProcess("linnet", packed, log) as engine:
        found = measure(engine, limits, options.rounds)
        found |= {"first_token_s": starts, "peak_rss_bytes": [peak]}
        parts = {}
        for batch in BATCHES:
            request = {"measure": "breakdown", "sequences": batch, "prompt": DECODE_PROMPT, "steps": 64}
            parts[f"batch {batch}"], _ = undisturbed(lambda request=request: engine.ask(request))
        result = {
            "shape": options.shape,
            "scheme": options.scheme,
            **shares(found, ledger),
            "concurrent16_tokens_per_s": statistics.median(found["concurrent16_tokens_per_s"]),
            "overhead_share": max(overhead(one["parts_s"], one["total_s"]) for one in parts.values()),
            "first_token_s": statistics.median(starts),
            "first_token_cold_s": cold,
            "first_token_first_time_s": first_time,
            "peak_rss_bytes": int(peak),
            "checkpoint_bytes": size,
            "foreign_cores": max(found["foreign_cores"]),
        }
        if options.context:
            behind = long_context(engine, limits, ledger, options.context)
            parts[f"batch 1 behind {options.context:,} tokens"] = behind
            result["kv_bandwidth_share"] = behind["kv_bandwidth_share"]
    result["overhead_share_of_batch"] = {name: overhead(one["parts_s"], one["total_s"]) for name, one in parts.items()}
    return result, found, [summary_table(result, found), breakdown_table(parts)]


def main() -> None:
    """Prepare, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", default="llama-3.2-1b")
    parser.add_argument("--scheme", default="W4A16-head8")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument(
        "--context", type=int, default=8192, help="tokens before the long-context step; 0: no such step"
    )
    parser.add_argument("--work", type=Path, default=Path("scratch"))
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    packed = prepare(options.work, options.shape, options.scheme)
    with tempfile.NamedTemporaryFile(suffix=".log") as log:
        result, found, tables = run(options, packed, Path(log.name))
    console = Console()
    for table in tables:
        console.print(table)
    if max(found["foreign_cores"]) > MOST_CORES:
        console.print("[yellow]other processes were busy beside some samples; believe the shares, not the speeds[/]")
    if options.json:
        options.json.write_text(json.dumps({**result, "samples": found}) + "\n", encoding="utf-8")
    print(json.dumps(result))


if __name__ == "__main__":
    main()
