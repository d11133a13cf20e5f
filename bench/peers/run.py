# SPDX-License-Identifier: Apache-2.0
"""Linnet beside its peers in one run, in turns, with the machine's limits probed between: what `make bench` runs.

    python bench/peers/run.py [--pairings "W4A16-head8:llama.cpp Q4_0,..."] [--measures prefill,decode] [--rounds 3]
                              [--shape llama-3.2-1b] [--out out/bench] [--seconds N]

Every sample is one line of OUT/samples.jsonl, written as it is taken; a later run with the same OUT continues where
the lines end, so a long comparison can be cut into pieces (--seconds). At the end, and with --report alone, OUT/
report.md and OUT/ratios.png are made from the lines. A peer that is not installed, or fails, is named with its reason.
"""

import argparse
import json
import os
import sys
import time
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

BENCH = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(BENCH))

from foreign import MOST_CORES, MOST_DRIFT, TRIES, undisturbed  # noqa: E402
from limits import MachineLimits, Probe, moved  # noqa: E402
from measures import MEASURES, Values, memory  # noqa: E402
from peers import convert, report  # noqa: E402
from peers.catalogue import LINNET, PAIRINGS, PEERS, Contender, Places, pairing  # noqa: E402
from peers.neighbour import Neighbour, arrival  # noqa: E402
from process import EngineProcess, WorkerError  # noqa: E402
from startup import first_token_s, prompt_text  # noqa: E402

SIDES = ("ours", "theirs")
FRESH = ("start", "memory")
"""Measures that need a process of their own for every sample."""

SETTLE_S = 0.3
"""Before every probe: OpenMP's threads (vLLM's, llama.cpp's) spin on for up to 0.2 s after their last work."""

NAMES = (*FRESH, *MEASURES, "noisy", "arrival")
DEFAULT_MEASURES = (*FRESH, *MEASURES)


class Journal:
    """The lines of one output folder: what is done already, and where new samples go."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.file = folder / "samples.jsonl"
        self.records = report.read(self.file)
        if self.file.exists() and not self.file.read_bytes().endswith(b"\n"):
            with self.file.open("a") as file:
                file.write("\n")  # ends the line of a run that was killed while writing

    def has(self, ours: str, theirs: str | None, measure: str, number: int, side: str) -> bool:
        """Whether this sample was taken (or failed) before."""
        key = (ours, theirs, measure, number, side)
        return any(report.key_of(record) == key for record in self.records)

    def add(self, record: dict[str, Any]) -> None:
        """Append and keep."""
        record = {"format_version": 1, "time": time.time(), **record}
        self.records.append(record)
        with self.file.open("a", encoding="utf-8") as file:
            file.write(json.dumps(record) + "\n")


class OutOfTimeError(Exception):
    """--seconds are over; the next run continues."""


class Comparison:
    """One pairing: opens what a measure needs, takes turns, writes lines."""

    def __init__(self, run: "Runner", ours: Contender, theirs: Contender) -> None:
        self.run, self.sides = run, {"ours": ours, "theirs": theirs}

    def measure(self, names: list[str], rounds: int) -> None:
        """Everything that is not in the journal yet."""
        for fresh in (name for name in names if name in FRESH):
            for number in range(rounds):
                self.turns(fresh, number, {side: partial(self._fresh, fresh, side) for side in SIDES}, tries=1)
        shapes: dict[tuple[int, int], list[str]] = {}
        for name in names:
            if name not in FRESH and name != "arrival":
                like = MEASURES["decode" if name == "noisy" else name]
                shapes.setdefault((like.context_tokens, like.max_sequences), []).append(name)
        for (context, sequences), group in shapes.items():
            if any(self._todo(name, number) for name in group for number in range(rounds)):
                self._open(group, rounds, {"context_tokens": context, "max_sequences": sequences})

    def turns(self, measure: str, number: int, takes: dict[str, Callable[[], Values]], tries: int = TRIES) -> None:
        """Linnet, then the peer, unless the journal has them; again where others were busy or the machine changed.

        Neighbours are only comparable in one state of the machine, so both are repeated.
        """
        if not self._todo(measure, number):
            return
        self.run.check_time()

        def pair() -> dict[str, tuple[Probe, Values]]:
            return {side: self.run.sample(take) for side, take in takes.items()}

        def drift(found: dict[str, tuple[Probe, Values]]) -> float:
            one, other = (probe for probe, _ in found.values())
            between = moved(one.read_bytes_per_s, other.read_bytes_per_s)
            return max(between, one.drift, other.drift)

        found, cores = undisturbed(pair, tries=tries, drift=drift)
        for side, (probe, values) in found.items():
            self.run.write(
                {
                    "ours": self.sides["ours"].weights,
                    "theirs": self.sides["theirs"].name,
                    "measure": measure,
                    "round": number,
                    "side": side,
                    "values": values,
                    "probe": asdict(probe),
                    "foreign_cores": cores,
                    "clean": cores <= MOST_CORES and (measure in FRESH or drift(found) <= MOST_DRIFT),
                }
            )

    def _todo(self, measure: str, number: int) -> bool:
        ours, theirs = self.sides["ours"].weights, self.sides["theirs"].name
        return not all(self.run.journal.has(ours, theirs, measure, number, side) for side in SIDES)

    def _fresh(self, name: str, side: str) -> Values:
        contender = self.sides[side]
        if name == "start" and contender.is_linnet:
            model = self.run.places.model(contender)
            return {"first_token_s": first_token_s(model, prompt_text(model))}
        with self.run.open(contender, max_sequences=1) as engine:
            return {"first_token_s": engine.first_token_s} if name == "start" else memory(engine)

    def _open(self, group: list[str], rounds: int, settings: dict[str, int]) -> None:
        with (
            self.run.open(self.sides["ours"], **settings) as ours,
            self.run.open(self.sides["theirs"], **settings) as theirs,
        ):
            engines = {"ours": ours, "theirs": theirs}
            for name in group:
                for engine in engines.values():
                    for quiet in ("prefill", "decode") if name == "noisy" else (name,):
                        engine.generate(*MEASURES[quiet].warm)
            for number in range(rounds):
                for name in group:
                    take = Neighbour.kept if name == "noisy" else MEASURES[name].run
                    self.turns(name, number, {side: partial(take, engine) for side, engine in engines.items()})


class Runner:
    """Limits, places, journal and clock of one run."""

    def __init__(self, places: Places, folder: Path, seconds: float | None) -> None:
        self.places, self.folder, self.journal = places, folder, Journal(folder)
        self.limits = MachineLimits()
        self._ends = None if seconds is None else time.monotonic() + seconds

    def check_time(self) -> None:
        """Raises OutOfTimeError when no more samples should be started."""
        if self._ends is not None and time.monotonic() > self._ends:
            raise OutOfTimeError

    def sample(self, take: Callable[[], Values]) -> tuple[Probe, Values]:
        """One number, and what the machine allowed around it."""

        def settled() -> Values:
            values = take()
            time.sleep(SETTLE_S)
            return values

        time.sleep(SETTLE_S)
        return Probe.around(self.limits, settled)

    def open(self, contender: Contender, **settings: Any) -> EngineProcess:
        """Start its worker; WorkerError with its last words if it cannot."""
        log = self.folder / "logs" / f"{contender.name.replace(' ', '-')}.log"
        log.parent.mkdir(exist_ok=True)
        python = self.places.python(contender, sys.executable)
        model = self.places.model(contender)
        return EngineProcess(contender.adapter, model, log, python, **contender.settings, **settings)

    def write(self, record: dict[str, Any]) -> None:
        """One line, and what it says for people who wait."""
        self.journal.add({"shape": self.places.shape, **record})
        values = ", ".join(f"{name} {value:.4g}" for name, value in record.get("values", {}).items())
        print(f"{record['ours']} | {record['theirs']} | {record['measure']} {record['round']} {record['side']}: "
              f"{values or record.get('failed')}", flush=True)  # fmt: skip

    def pairing(self, ours: Contender, theirs: Contender, names: list[str], rounds: int) -> None:
        """One pairing, or one line that says why not."""
        reason = self.places.missing(theirs)
        try:
            if reason is None:
                for contender in (ours, theirs):
                    convert.prepare(contender, self.places)
                Comparison(self, ours, theirs).measure(names, rounds)
        except (WorkerError, RuntimeError) as error:
            reason = str(error)
        if reason is not None:
            print(f"skipped {ours.name} | {theirs.name}: {reason}", flush=True)
            self.journal.add({"ours": ours.weights, "theirs": theirs.name, "measure": "", "round": 0, "side": "",
                              "skipped": reason.splitlines()[0]})  # fmt: skip

    def arrival(self, ours: Contender, rounds: int) -> None:
        """Linnet alone: a long prompt arrives while eight sequences decode."""
        convert.prepare(ours, self.places)
        for number in range(rounds):
            if self.journal.has(ours.weights, None, "arrival", number, "ours"):
                continue
            self.check_time()
            (probe, values), cores = undisturbed(lambda: self.sample(lambda: arrival(self.places.model(ours))))
            self.write({"ours": ours.weights, "theirs": None, "measure": "arrival", "round": number, "side": "ours",
                        "values": values, "probe": asdict(probe), "foreign_cores": cores,
                        "clean": cores <= MOST_CORES})  # fmt: skip


def arguments() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    default = ",".join(f"{ours}:{theirs}" for ours, theirs in PAIRINGS)
    parser.add_argument("--pairings", default=default, help=f"OURS:THEIRS, comma-separated; default: {default}")
    parser.add_argument("--peers", default="", help="of those pairings only these peers, comma-separated")
    parser.add_argument("--measures", default=",".join(DEFAULT_MEASURES), help=f"of {', '.join(NAMES)}")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--shape", default="llama-3.2-1b")
    parser.add_argument("--work", type=Path, default=Path("scratch"))
    parser.add_argument("--cache", type=Path, default=Path("scratch/peers"))
    parser.add_argument("--out", type=Path, default=Path("out/bench"))
    parser.add_argument("--seconds", type=float, help="start no sample after so many seconds; run again to continue")
    parser.add_argument("--report", action="store_true", help="measure nothing; make the report from the lines")
    return parser


def chosen(options: argparse.Namespace) -> tuple[list[tuple[Contender, Contender]], list[str]]:
    """Pairings and measures; ValueError in words."""
    pairs = [pairing(text.strip()) for text in options.pairings.split(",") if text.strip()]
    if options.peers:
        wanted = [name.strip() for name in options.peers.split(",")]
        if unknown := [name for name in wanted if name not in PEERS]:
            raise ValueError(f"unknown peer {', '.join(unknown)}; known: {', '.join(PEERS)}")
        pairs = [pair for pair in pairs if pair[1].name in wanted]
    names = [name.strip() for name in options.measures.split(",") if name.strip()]
    if unknown := [name for name in names if name not in NAMES]:
        raise ValueError(f"unknown measure {', '.join(unknown)}; known: {', '.join(NAMES)}")
    return pairs, names


def main() -> None:
    """Measure what is missing, then report."""
    parser = arguments()
    options = parser.parse_args()
    try:
        pairs, names = chosen(options)
    except ValueError as error:
        parser.error(str(error))
    places = Places(options.work, options.cache, options.shape)
    if not options.report:
        runner = Runner(places, options.out, options.seconds)
        try:
            for ours, theirs in pairs:
                runner.pairing(ours, theirs, names, options.rounds)
            if "arrival" in names:
                for ours in dict.fromkeys(pair[0] for pair in pairs) or [LINNET["W4A16-head8"]]:
                    runner.arrival(ours, options.rounds)
        except OutOfTimeError:
            print(f"{options.seconds:.0f} s are over; the same command continues", flush=True)
    print(report.make(options.out, places, f"{os.cpu_count()} CPUs"))


if __name__ == "__main__":
    main()
