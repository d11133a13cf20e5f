# SPDX-License-Identifier: Apache-2.0
"""wanted_rows: the passes that leave out rows which nobody asks for, in their order.

A backend executes what they make, and the memory ledger weighs it, so both must make the same.
"""

from collections.abc import Collection

from linnet.program.gather_early import gather_early
from linnet.program.head_apart import head_apart
from linnet.program.program import Program


def wanted_rows(program: Program, keep: Collection[str] = ()) -> Program:
    """The program with every op done for the rows that are wanted of it; ``keep`` is kept whole. Before ``fuse``."""
    return head_apart(gather_early(program, keep), keep)
