# SPDX-License-Identifier: Apache-2.0
"""Linnet against transformers (bf16, eager) and against the machine's limits: interleaved, in one run.

    python bench/engine.py [--shape llama-3.2-1b] [--scheme W4A16-head8] [--rounds 3] [--json FILE]

Makes (once, in --work) a random-weight checkpoint of a real shape, compresses it, then starts both engines and asks
them in turns: prefill of 512 tokens, decoding of 64 tokens after 32, 16 sequences of 32 + 32 tokens. Read bandwidth
and the int8 peak are probed beside every turn. Prints medians with min - max and the ratio, and one JSON object last.
"""

import argparse
import json
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from limits import MachineLimits
from linnet.backends.interface import Limits
from linnet.formats import Checkpoint
from linnet.models import load_model
from linnet.plan import predict

HERE = Path(__file__).resolve().parent
PREFILL, DECODE, CONCURRENT, SEQUENCES = 512, 64, 32, 16


class Engine:
    """A worker process: one engine, one model."""

    def __init__(self, kind: str, directory: Path) -> None:
        self.kind = kind
        command = [sys.executable, str(HERE / "workers.py"), kind, str(directory)]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.first_token_s = float(self._read()["first_token_s"])
        self.peak_rss_bytes = 0

    def run(self, prompt: int, new: int, sequences: int = 1) -> dict[str, float]:
        """One measurement; see workers.py."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps({"prompt": prompt, "new": new, "sequences": sequences}) + "\n")
        self._process.stdin.flush()
        answer = self._read()
        self.peak_rss_bytes = int(answer["peak_rss_bytes"])
        return answer

    def close(self) -> None:
        """End the process."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(timeout=60)

    def _read(self) -> dict[str, float]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            sys.exit(f"engine.py: the {self.kind} worker ended early, status {self._process.wait()}")
        return dict(json.loads(line))


def prepare(work: Path, shape: str, scheme: str) -> tuple[Path, Path]:
    """The dense and the compressed checkpoint, made where they are missing."""
    dense, packed = work / shape, work / f"{shape}-{scheme}"
    if not dense.exists():
        subprocess.run([sys.executable, str(HERE / "make_model.py"), shape, str(dense)], check=True)
    if not packed.exists():
        command = [sys.executable, "-m", "linnet.cli.main", "compress", str(dense), "-o", str(packed)]
        subprocess.run([*command, "--scheme", scheme, "--algorithm", "rtn"], check=True)
    return dense, packed


def measure(ours: Engine, theirs: Engine, rounds: int) -> dict[str, list[float]]:
    """Turn by turn: probe, Linnet, transformers; every number a list of samples."""
    limits = MachineLimits()
    found: dict[str, list[float]] = {}

    def note(name: str, value: float) -> None:
        found.setdefault(name, []).append(value)

    for _ in range(rounds):
        for engine in (ours, theirs):
            note("read_bytes_per_s", limits.read())
            note("int8_macs_per_s", limits.peak("int8"))
            prefill = engine.run(PREFILL, 1)
            note(f"{engine.kind}_prefill_tokens_per_s", PREFILL / prefill["total_s"])
            decode = engine.run(32, DECODE)
            note(f"{engine.kind}_decode_tokens_per_s", (DECODE - 1) / (decode["total_s"] - decode["first_s"]))
            many = engine.run(32, CONCURRENT, SEQUENCES)
            note(f"{engine.kind}_concurrent{SEQUENCES}_tokens_per_s", SEQUENCES * CONCURRENT / many["total_s"])
    return found


def summarise(found: dict[str, list[float]], packed: Path, ours: Engine, theirs: Engine) -> dict[str, Any]:
    """Medians, ratios and shares of the limits. Bytes and multiply-adds of a step come from the plan."""
    median = {name: statistics.median(samples) for name, samples in found.items()}
    with Checkpoint.open(packed, verify=False) as checkpoint:
        ledger = predict(load_model(checkpoint), Limits(PREFILL, 1, 1, 16, 64), "fast")
        step_bytes = ledger.step_weight_bytes + 64 * ledger.kv_bytes_per_token
        head = checkpoint.config["hidden_size"] * checkpoint.config["vocab_size"]
        size = checkpoint.nbytes
    body = ledger.multiplications - head
    return {
        "median": median,
        "range": {name: [min(samples), max(samples)] for name, samples in found.items()},
        "ratio": {
            name: median[f"linnet_{name}"] / median[f"transformers_{name}"]
            for name in (
                "prefill_tokens_per_s",
                "decode_tokens_per_s",
                f"concurrent{SEQUENCES}_tokens_per_s",
            )
        },
        "decode_bandwidth_share": step_bytes * median["linnet_decode_tokens_per_s"] / median["read_bytes_per_s"],
        "prefill_int8_share": body * median["linnet_prefill_tokens_per_s"] / median["int8_macs_per_s"],
        "first_token_s": {engine.kind: engine.first_token_s for engine in (ours, theirs)},
        "peak_rss_bytes": {engine.kind: engine.peak_rss_bytes for engine in (ours, theirs)},
        "checkpoint_bytes": size,
    }


def table(result: dict[str, Any]) -> Table:
    """The summary for people."""
    shown = Table("measure", "linnet", "transformers bf16", "ratio", title="engine, median [min - max]")
    for name, ratio in result["ratio"].items():
        cells = []
        for kind in ("linnet", "transformers"):
            low, high = result["range"][f"{kind}_{name}"]
            cells.append(f"{result['median'][f'{kind}_{name}']:.1f} [{low:.1f} - {high:.1f}]")
        shown.add_row(name.replace("_", " "), *cells, f"{ratio:.2f}")
    for name, scale, unit in (("first_token_s", 1, "s"), ("peak_rss_bytes", 1e9, "GB")):
        ours, theirs = (result[name][kind] / scale for kind in ("linnet", "transformers"))
        shown.add_row(name.replace("_", " "), f"{ours:.2f} {unit}", f"{theirs:.2f} {unit}", f"{ours / theirs:.2f}")
    shown.add_row("decode, share of read bandwidth", f"{result['decode_bandwidth_share']:.0%}")
    shown.add_row("prefill, share of int8 peak", f"{result['prefill_int8_share']:.0%}")
    return shown


def main() -> None:
    """Prepare, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", default="llama-3.2-1b")
    parser.add_argument("--scheme", default="W4A16-head8")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--work", type=Path, default=Path("scratch"))
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    dense, packed = prepare(options.work, options.shape, options.scheme)
    theirs, ours = Engine("transformers", dense), Engine("linnet", packed)
    result = summarise(measure(ours, theirs, options.rounds), packed, ours, theirs)
    ours.close()
    theirs.close()
    Console().print(table(result))
    line = json.dumps({"shape": options.shape, "scheme": options.scheme, **result})
    if options.json:
        options.json.write_text(line + "\n", encoding="utf-8")
    print(line)


if __name__ == "__main__":
    main()
