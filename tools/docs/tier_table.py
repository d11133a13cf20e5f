# SPDX-License-Identifier: Apache-2.0
"""The tiers' part of docs/support.md: which native kernel multiplies by each stored form, asked of an executable that
was prepared for that tier. Part of ``support_matrix.py``.

A machine can be asked for the tiers that it has. The columns of others stay as the page has them: made where they were.
"""

from collections.abc import Mapping
from functools import cache
from typing import NamedTuple

from stored_forms import FormSource

from linnet.backends.cpu import _native
from linnet.backends.cpu.backend import ISAS, CpuBackend
from linnet.backends.interface import Limits, Policy

TITLE = "## Kernels, by tier of instructions"
HEAD = f"""
{TITLE}

The native kernels that multiply by each form, as reports name them, where it was prepared for that tier, by both
policies. A tier has those named in front unless it says others (*fast* / *exact*). `int4_x_int8`: codes meet rounded
inputs as integers; `decoded_x_fp32`: the weight's numbers, exact, meet inputs in fp32. `tests/ops/test_stored_forms.py`
runs every form on every tier that a machine has, beside the reference.
"""
ALIKE = "yes"
LIMITS = Limits(max_tokens=4, max_sequences=1, max_outputs=4, block_size=16, max_blocks_per_sequence=1)
NOT_ASKED = "not asked"


class Kernels(NamedTuple):
    """Names of kernels by policy."""

    fast: str
    exact: str


Cells = Mapping[tuple[str, str], Mapping[str, Kernels]]
"""(published as, stored as) -> tier -> kernels."""


@cache
def backend(tier: str) -> CpuBackend:
    """Of a tier that this machine has."""
    return CpuBackend(threads=2, isa=tier)


def kernel(source: FormSource, op: str, tier: str, policy: Policy) -> str:
    """The name of what executes an op, without the tier's. Numerics of the source's program are chosen already."""
    executable = backend(tier).prepare(source, policy, LIMITS, chosen=source.program)
    return executable.choices[op].removesuffix(f"_{tier}")


def own_tiers() -> list[str]:
    """Those of this machine, best first; the last is the portable one, which every machine has."""
    return list(_native.available_isas())


def on_page(text: str) -> Cells:
    """What a page says: tier -> kernels, whether they are named in front or in its own column."""
    lines = text.partition(TITLE)[2].partition("\n## ")[0].splitlines()
    header, _, *rows = ([cell.strip() for cell in line.split("|")[1:-1]] for line in lines if line.startswith("|"))
    return {
        (row[0], row[1]): {
            tier: Kernels(*row[2:4]) if cell == ALIKE else Kernels(*cell.split(" / "))
            for tier, cell in zip(header[4:], row[4:], strict=True)
            if cell != NOT_ASKED
        }
        for row in rows
    }


def section(cells: Cells) -> str:
    """The table."""
    known = {tier for row in cells.values() for tier in row}
    tiers = [tier for tier in ISAS if tier in known]
    missing = [tier for tier in ISAS if tier not in known]
    lines = [f"| published as | stored as | fast | exact | {' | '.join(tiers)} |", "|---" * (len(tiers) + 4) + "|"]
    for key, row in cells.items():
        common = row[own_tiers()[-1]]
        answers = (_cell(row.get(tier), common) for tier in tiers)
        lines.append(f"| {' | '.join((*key, *common, *answers))} |")
    asked = f"No machine that made this page had {' or '.join(missing)}.\n" if missing else ""
    return HEAD + asked + "\n" + "\n".join(lines) + "\n"


def _cell(found: "Kernels | None", common: "Kernels") -> str:
    if found is None:
        return NOT_ASKED
    return ALIKE if found == common else " / ".join(found)
