# SPDX-License-Identifier: Apache-2.0
"""One picture of what a compression cost: the error of every block's output, and the modules that lost most."""

import io
from collections.abc import Mapping
from typing import Any

from linnet.compress.worst import block_errors, worst_modules

SHOWN_MODULES = 10
COLOUR = "#2c3e50"


def draw(record: Mapping[str, Any]) -> bytes | None:
    """PNG of a manifest's ``record``; None without matplotlib, or where no errors are known."""
    _, errors = block_errors(record["blocks"])
    worst = worst_modules(record["layers"], SHOWN_MODULES)
    try:
        from matplotlib.figure import Figure
    except ImportError:
        return None
    if not worst:
        return None
    figure = Figure(figsize=(11, 3.6), layout="constrained")
    left, right = figure.subplots(1, 2)
    if errors:
        left.plot(range(len(errors)), errors, "o-", color=COLOUR, ms=4)
        left.set_yscale("log")
        left.set_xlabel("block")
        left.xaxis.get_major_locator().set_params(integer=True)
    else:
        left.set_axis_off()
    left.set_title("relative error of each block's output" if errors else "no rows were run", fontsize=9)
    right.barh([loss.module for loss in reversed(worst)], [loss.error for loss in reversed(worst)], color=COLOUR)
    right.tick_params(axis="y", labelsize=7)
    what = "output" if worst[0].of_output else "weight"
    right.set_title(f"relative error of the {what}: the {len(worst)} worst modules", fontsize=9)
    drawn = io.BytesIO()
    figure.savefig(drawn, format="png", dpi=120, metadata={"Software": None})
    return drawn.getvalue()
