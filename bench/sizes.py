# SPDX-License-Identifier: Apache-2.0
"""What other sizes than the kernels' own would gain on this machine: prefetch distances, tiles, panels, crossovers.

    python bench/sizes.py [--only TEXT,TEXT] [--repeats 9] [--work scratch/sizes] [--build]

With --build (once; minutes) a copy of the sources is built in which each size is read from the environment.
Then every value of a size is a process of its own, and all take turns: a ratio is the time with the size as it is by
the time with another, so above 1 the other is better; the median of all turns with their least and greatest, and the
ratio of the least times. A line "as it is" of a second process with nothing changed shows how much to believe.
"""

import argparse
import json
import logging
import os
import re
import shutil
import statistics
import subprocess
import sys
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import IO

from linnet.backends.cpu import _native

ROOT = Path(__file__).resolve().parent.parent
LINEAR = "csrc/kernels/linear"
HEADER = """// SPDX-License-Identifier: Apache-2.0
#pragma once
#include <cstdint>
#include <cstdlib>
inline int64_t size_of(const char* name, int64_t usual) {
    const char* given = std::getenv(name);
    return given == nullptr ? usual : std::atoll(given);
}
"""
INCLUDE = '#include "kernels/size_of.h"'
FEW = ("linear-W4A16-fast-8192x2048-m1", "linear-W4A16-fast-2048x8192-m1", "linear-W8A16-fast-8192x2048-m1")
SOME = ("linear-W4A16-fast-8192x2048-m4", "linear-W4A16-fast-8192x2048-m16")
MANY = ("linear-W4A16-fast-8192x2048-m512", "linear-W8A8-fast-8192x2048-m512")
LONG = ("attention-*-fast-2048-m1-c8191-kv_bf16", "attention-*-fast-2048-m16-c511-s16-kv_bf16")


@dataclass(frozen=True)
class Size:
    """One number of the kernels. ``edits``: (file, what stands there, what stands in the copy); ``values``: what is
    tried beside ``usual``; ``cases``: patterns of the OpCases' names that it may matter for."""

    name: str
    meaning: str
    usual: int
    values: tuple[int, ...]
    edits: tuple[tuple[str, str, str], ...]
    cases: tuple[str, ...]

    @property
    def variable(self) -> str:
        """What the copy reads."""
        return f"LINNET_SIZE_{self.name}"


def constant(name: str, meaning: str, usual: int, values: tuple[int, ...], file: str, cases: tuple[str, ...]) -> Size:
    """A size that is one declaration: ``[static] constexpr int64_t NAME = ...;`` in one file."""
    text = (ROOT / file).read_text(encoding="utf-8")
    leaf = name.partition("_OF_")[0]
    line = next(line for line in text.splitlines() if f"constexpr int64_t {leaf} = " in line)
    code = line.partition(";")[0]
    made = f'static const int64_t {leaf} = size_of("LINNET_SIZE_{name}", {usual})'
    return Size(name, meaning, usual, values, ((file, code, made),), cases)


def sizes() -> tuple[Size, ...]:
    """All of them."""
    panels = f"{LINEAR}/panels_vnni.cpp"
    item = 'static const ItemShape PANEL_ITEM = {size_of("LINNET_SIZE_ITEM_ROWS", 128), '
    item += 'size_of("LINNET_SIZE_ITEM_OUTPUTS", 256)};'
    return (
        constant(
            *("AHEAD_BYTES_OF_GEMV", "prefetch distance, few rows", 8192, (2048, 4096, 16384, 32768)),
            *(f"{LINEAR}/gemv_kernels.h", FEW),
        ),
        constant(
            *("AHEAD_BYTES_OF_TILES", "prefetch distance in tiles", 2048, (0, 1024, 4096, 8192)),
            *(f"{LINEAR}/tiled.cpp", SOME),
        ),
        constant(
            *("AHEAD_BYTES_OF_KEYS", "prefetch distance in keys and values", 16384, (4096, 8192, 32768)),
            *("csrc/kernels/ops/attention_abreast.cpp", LONG),
        ),
        constant(
            *("FEWEST_ROWS", "rows from which panels are unpacked", 5, (3, 4, 8, 12)),
            *(panels, SOME[:1]),
        ),
        Size(
            *("ITEM_ROWS", "rows of a thread's piece of work", 128, (64, 256)),
            ((f"{LINEAR}/panels.h", "constexpr ItemShape PANEL_ITEM = {128, 256};", item),),
            MANY,
        ),
        Size("ITEM_OUTPUTS", "outputs of a thread's piece of work", 256, (64, 128, 512), (), MANY),
    )


def build(work: Path) -> None:
    """The copy with its sizes in the environment."""
    shutil.rmtree(work, ignore_errors=True)
    for name in ("csrc", "src"):
        shutil.copytree(ROOT / name, work / name, ignore=shutil.ignore_patterns("_native*.so", "__pycache__"))
    shutil.copy(ROOT / "CMakeLists.txt", work)
    (work / "csrc/kernels/size_of.h").write_text(HEADER, encoding="utf-8")
    unoptimise(work / "CMakeLists.txt")
    for size in sizes():
        for file, there, instead in size.edits:
            text = (work / file).read_text(encoding="utf-8")
            if text.count(there) != 1:
                raise SystemExit(f"{file} holds {there!r} {text.count(there)} times; once is expected")
            text = text if INCLUDE in text else text.replace("#include", f"{INCLUDE}\n#include", 1)
            (work / file).write_text(text.replace(there, instead), encoding="utf-8")
    where = ["-S", str(work), "-B", str(work / "build"), "-G", "Ninja", f"-DPython_EXECUTABLE={sys.executable}"]
    launcher = ["-DCMAKE_CXX_COMPILER_LAUNCHER=ccache"] if shutil.which("ccache") else []
    subprocess.run(["cmake", *where, *launcher], check=True, stdout=subprocess.DEVNULL)
    subprocess.run(["cmake", "--build", str(work / "build")], check=True)


def unoptimise(lists: Path) -> None:
    """Tiers that this machine would not choose are compiled fast instead of made fast."""
    own = _native.available_isas()[0]
    text = lists.read_text(encoding="utf-8")
    for tier in {*re.findall(r"linnet_tier\((\w+)", text)} - {own, own.removesuffix("_vnni")}:
        text = re.sub(rf"linnet_tier\({tier}\b([^)]*)\)", rf"linnet_tier({tier}\1 -O0)", text)
    lists.write_text(text, encoding="utf-8")


def serve(text: str) -> None:
    """A child: opens the cases whose names are so, says their names, then times one for every number it reads."""
    from conformance import speed_cases
    from limits import MachineLimits
    from op_runs import op_case

    logging.getLogger("linnet").setLevel(logging.ERROR)
    limits = MachineLimits(None, "")
    wanted = text.split("|")
    named = [case for case in speed_cases() if any(fnmatch(case.name, pattern) for pattern in wanted)]
    timed = [op_case(case, limits) for case in named]
    print(json.dumps([one.name for one in timed]), flush=True)
    for line in sys.stdin:
        print(sum(timed[int(line)].seconds()), flush=True)


class Child:
    """A process with one size set, or none."""

    def __init__(self, work: Path, cases: tuple[str, ...], variables: dict[str, str]) -> None:
        places = os.pathsep.join(str(place) for place in (work / "src", ROOT / "bench", ROOT / "tests" / "ops"))
        self._process = subprocess.Popen(
            [sys.executable, __file__, "--serve", "|".join(cases)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": places, **variables},
        )
        self.names: list[str] = json.loads(self._pipe(self._process.stdout).readline())

    @staticmethod
    def _pipe(pipe: IO[str] | None) -> IO[str]:
        assert pipe is not None
        return pipe

    def seconds(self, case: int) -> float:
        """One measurement."""
        pipe = self._pipe(self._process.stdin)
        pipe.write(f"{case}\n")
        pipe.flush()
        return float(self._pipe(self._process.stdout).readline())

    def close(self) -> None:
        """End it."""
        self._pipe(self._process.stdin).close()
        self._process.wait()


def compare(size: Size, work: Path, repeats: int) -> None:
    """Print a table's lines for one size."""
    named = {"as it is": {}, **{str(value): {size.variable: str(value)} for value in size.values}}
    usual = Child(work, size.cases, {})
    others = {name: Child(work, size.cases, variables) for name, variables in named.items()}
    for number, case in enumerate(usual.names):
        own: list[float] = []
        found: dict[str, list[float]] = {name: [] for name in others}
        for _ in range(repeats):
            for name, other in others.items():
                own.append(usual.seconds(number))
                found[name].append(other.seconds(number))
        for place, (name, seconds) in enumerate(found.items()):
            ratios = [before / after for before, after in zip(own[place :: len(others)], seconds, strict=True)]
            shown = f"{statistics.median(ratios):.3f} [{min(ratios):.3f}-{max(ratios):.3f}]"
            least = f"{min(own) / min(seconds):.3f}"
            print(f"| {size.meaning} | {size.usual} | {name} | {case} | {shown} | {least} |", flush=True)
    for child in (usual, *others.values()):
        child.close()


def main() -> None:
    """Build if asked to, and compare."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help="sizes whose name contains one of these, divided by commas")
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--work", type=Path, default=ROOT / "scratch" / "sizes")
    parser.add_argument("--build", action="store_true")
    parser.add_argument("--serve", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve:
        serve(options.serve)
        return
    if options.build:
        build(options.work.resolve())
        return
    print("| size | as it is | other | case | time as it is / with the other | of the least times |")
    print("|---|---|---|---|---|---|")
    for size in sizes():
        if any(text in size.name for text in options.only.split(",")):
            compare(size, options.work.resolve(), options.repeats)


if __name__ == "__main__":
    main()
