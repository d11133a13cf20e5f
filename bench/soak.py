# SPDX-License-Identifier: Apache-2.0
"""The rows of the reliability contract, at the size of a release: one after the other, a table at the end.

    python bench/soak.py [--rows R6 R9] [--quick] [--part 0.1] [--alone] [--plan] [--json FILE]

A row is the tests that prove it, with their counts raised by environment variables (``--quick``: as `make test` runs
them), or a bench. Each is a process of its own; what it says on the way goes to standard error, when it is done. Rows
that look at a clock run one after the other, and beside them, one after the other too, those that do not (``--alone``:
nothing beside anything). ``--part`` runs such a share of each size that can be counted, and says so in the table.
``--plan`` says what each row is and runs nothing. Status 1 if one fails.
"""

import argparse
import json
import math
import os
import re
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from lines import note

ROOT = Path(__file__).resolve().parents[1]
DEMO = "src/linnet/demo/model"
PAIRS = 105
"""Pairs of features in tests/e2e/test_engine_laws.py, each with its own trials."""


@dataclass(frozen=True)
class Row:
    """``size``: what was counted, in words, at the size of a release; ``set``: the variables that make it so.

    clock: whether it promises seconds, so that nothing else that does may run beside it.
    """

    name: str
    what: str
    size: str
    tests: tuple[str, ...] = ()
    keyword: str = ""
    set: dict[str, str] = field(default_factory=dict)
    bench: tuple[str, ...] = ()
    quick_bench: tuple[str, ...] = ()
    clock: bool = False

    def command(self, quick: bool) -> list[str]:
        """What is run."""
        if self.bench:
            return [sys.executable, *(self.quick_bench if quick else self.bench)]
        chosen = ["-k", self.keyword] if self.keyword else []
        return [sys.executable, "-m", "pytest", "-q", "-s", "--durations=0", "-o", "timeout=0", *self.tests, *chosen]


LAWS = "tests/e2e/test_engine_laws.py"
ROWS = (
    Row(
        "R5",
        "random traces of requests, each as if alone",
        f"{48 * PAIRS:,} traces on the digest model",
        (LAWS,),
        "digest_model or all_features",
        {"LINNET_LAW_TRIALS": "48"},
    ),
    Row(
        "R6",
        "clients that leave at random moments; nothing is left, memory stands still",
        "50,000 requests",
        ("tests/e2e/test_server_behaviour.py",),
        "random_moments",
        {"LINNET_SOAK_REQUESTS": "50000"},
        clock=True,
    ),
    Row(
        "R7",
        "scheduler and pool in virtual time, checked every step",
        "500 workloads a law",
        ("tests/sim",),
        set={"LINNET_SIM_TRIALS": "500"},
    ),
    Row(
        "R8",
        "forced preemption, pools of one sequence",
        "500 trials a pair of features",
        (LAWS, "tests/sim/test_simulated_laws.py"),
        "(preempt or small_pool) and not all_features and not cpu_backend",
        {"LINNET_LAW_TRIALS": "500", "LINNET_SIM_TRIALS": "500"},
    ),
    Row(
        "R9",
        "ten times as many requests as can be served",
        "10 minutes",
        ("tests/e2e/test_server_overload.py",),
        set={"LINNET_OVERLOAD_S": "600"},
        clock=True,
    ),
    Row(
        "R14",
        "alone = in any batch, chunk, preempted, from the cache; CPU kernels, bit for bit",
        f"{10 * PAIRS:,} trials, no reruns",
        (LAWS, "tests/e2e/test_embeddings.py"),
        "cpu_backend or alone_equals",
        {"LINNET_LAW_TRIALS": "10"},
    ),
    Row(
        "R15",
        "equal seeds agree, distinct ones differ",
        "500 seeds a machine",
        (LAWS,),
        "seeds",
        {"LINNET_SEED_TRIALS": "500"},
    ),
    Row(
        "R16",
        "stream = whole, texts cut anywhere, stop strings across pieces",
        "5,000 sequences a tokenizer",
        (
            "tests/unit/api/test_stop_and_streams.py",
            "tests/unit/text/test_incremental_decoding.py",
            "tests/e2e/test_server_behaviour.py",
        ),
        "stream or decode or decoding or stop or byte_equal",
        {"LINNET_TEXT_TRIALS": "5000"},
    ),
    Row(
        "R20",
        "damaged files in every form that is read: one sentence, or what was there; little memory",
        "1,000 mutants a form",
        (
            "tests/unit/gguf/test_hostile_gguf.py",
            "tests/e2e/test_hostile_gguf_models.py",
            "tests/unit/formats/test_hostile_files.py",
            "tests/unit/formats/test_lying_directories.py",
            "tests/golden/test_foreign_mutants.py",
            "tests/golden/test_mxfp4.py",
        ),
        "mutants",
        {"LINNET_MUTANTS": "1000"},
    ),
    Row(
        "R21",
        "the engine is killed under load, and stops",
        "100 kills",
        bench=("bench/kills.py", DEMO, "--kills", "100"),
        quick_bench=("bench/kills.py", DEMO, "--kills", "5"),
        clock=True,
    ),
    Row(
        "R22",
        "the end at any moment: five phases, three deadlines, one signal and two",
        "the matrix",
        ("tests/e2e/test_server_life.py", "tests/e2e/test_server_process.py"),
        "end_at_any_moment or drain or signal or hold_up",
        clock=True,
    ),
    Row(
        "R1",
        "requests made of the OpenAPI document, right and wrong",
        "20,000 cases",
        ("tests/e2e/test_server_schema.py",),
        set={"LINNET_SCHEMA_CASES": "20000"},
    ),
    Row(
        "R2",
        "damaged exchanges over HTTP, and slow clients",
        "20,000 exchanges, 200 slow connections",
        ("tests/e2e/test_server_wire.py",),
        "mutated or slow_connections",
        {"LINNET_WIRE_CASES": "20000"},
    ),
    Row(
        "R3",
        "requests that broke other servers, and what clients really send",
        "the corpus",
        ("tests/e2e/test_server_bad_requests.py", "tests/e2e/test_server_leniency.py"),
    ),
    Row("R4", "every field beside every odd value", "the matrix", ("tests/e2e/test_server_boundaries.py",)),
    Row(
        "R10",
        "/health while what takes long is judged, and under floods of framing",
        "10 seconds of each kind",
        ("tests/e2e/test_server_liveness.py", "tests/e2e/test_server_wire.py"),
        "liveness or at_once",
        {"LINNET_LIVENESS_S": "10"},
        clock=True,
    ),
    Row(
        "R11",
        "MaskBench: nothing wrong is accepted, grammars are compiled and masks filled in time",
        "every file that lies beside the checkout",
        ("tests/unit/engine/test_grammar_suites.py",),
        "world",
        {"LINNET_SCHEMA_FILES": "0"},
    ),
    Row(
        "R12",
        "the JSON Schema test suite, draft 2020-12",
        "the suite",
        ("tests/unit/engine/test_grammar_suites.py", "tests/e2e/test_server_structured.py"),
        "specification or refused_by_name",
    ),
    Row(
        "R17",
        "log-likelihoods over HTTP are those of transformers",
        "2,000 samples",
        ("tests/e2e/test_server_scoring_parity.py",),
        set={"LINNET_PARITY_SAMPLES": "2000"},
    ),
    Row("R23", "every route, method and spelling without a key", "the matrix", ("tests/e2e/test_server_security.py",)),
    Row(
        "R24",
        "what a web page could send: hosts, origins, preflights, other media types; addresses that need a key",
        "the matrix",
        ("tests/e2e/test_server_security.py", "tests/e2e/test_server_bad_requests.py"),
        "origins or public_address or media_types",
    ),
    Row(
        "R25",
        "nothing runs, connects or opens what it should not",
        "the corpus",
        ("tests/e2e/test_server_watchdog.py",),
    ),
    Row(
        "R26",
        "what another key has asked saves neither work nor time",
        "10,000 prompts asked by another key, 500 judged by their times",
        ("tests/e2e/test_server_tenants.py",),
        set={"LINNET_TENANT_TRIALS": "500", "LINNET_TENANT_PROMPTS": "10000"},
        clock=True,
    ),
    Row(
        "R27",
        "prompts, keys, paths and defects in logs, metrics, traces and errors",
        "every place",
        (
            "tests/e2e/test_server_security.py",
            "tests/e2e/test_server_logs.py",
            "tests/e2e/test_server_traces.py",
            "tests/e2e/test_server_life.py",
            "tests/e2e/test_server_bad_requests.py",
        ),
        "reach_no or in_no_span or in_no_line or nothing_else or does_not_compile",
    ),
)


def worst(line: str) -> str:
    """Of the JSON line of a bench, the counts and the worst times; another line as it is."""
    try:
        values = json.loads(line)
    except ValueError:
        return line[:200]
    return ", ".join(f"{name} {value:.3g}" for name, value in values.items() if isinstance(value, (int, float)))


def run(row: Row, part: float) -> dict[str, str | float]:
    """One row: what came of it and how long it took. ``part``: of its size; 0: as `make test` runs it."""
    began_s = time.monotonic()
    variables = {name: str(math.ceil(int(value) * part)) for name, value in row.set.items()} if part else {}
    done = subprocess.run(
        row.command(not part), cwd=ROOT, env=os.environ | variables, stdout=subprocess.PIPE, text=True, check=False
    )
    seconds = time.monotonic() - began_s
    sys.stderr.write(done.stdout)
    lines = done.stdout.strip().splitlines() or ["nothing was said"]
    counted = re.search(r"(?:(\d+) failed, )?(\d+) passed", lines[-1])
    found = f"{counted[2]} tests passed, {counted[1] or 0} failed" if counted else worst(lines[-1])
    size = "as make test runs it" if not part else row.size if part == 1 or not row.set else f"{part:g} x {row.size}"
    good = "holds" if done.returncode == 0 else f"BROKEN (status {done.returncode})"
    return {"row": row.name, "what": row.what, "size": size, "result": good, "found": found, "seconds": round(seconds)}


def main() -> int:
    """Run the rows, print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", nargs="+", choices=[row.name for row in ROWS], default=[row.name for row in ROWS])
    parser.add_argument("--quick", dest="part", action="store_const", const=0.0, default=1.0)
    parser.add_argument("--part", type=float)
    parser.add_argument("--json", type=Path, help="append a line a row to this file")
    parser.add_argument("--alone", action="store_true")
    parser.add_argument("--plan", action="store_true")
    options = parser.parse_args()
    rows = [row for row in ROWS if row.name in options.rows]
    lanes = [rows] if options.alone else [[row for row in rows if row.clock is clock] for clock in (True, False)]
    if options.plan:
        print("\n".join(f"{row.name:4} {row.size}: {row.what}" for row in rows))
        return 0
    with ThreadPoolExecutor(len(lanes)) as pool:
        ran = [one for lane in pool.map(lambda lane: [run(row, options.part) for row in lane], lanes) for one in lane]
    names = [row.name for row in rows]
    found = sorted(ran, key=lambda one: names.index(str(one["row"])))
    for one in found:
        note(one, options.json)
    print("\n| row | what | size | result | seconds |\n|---|---|---|---|---|")
    for one in found:
        print(f"| {one['row']} | {one['what']} | {one['size']} | {one['result']}: {one['found']} | {one['seconds']} |")
    return int(any(one["result"] != "holds" for one in found))


if __name__ == "__main__":
    raise SystemExit(main())
