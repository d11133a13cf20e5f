# SPDX-License-Identifier: Apache-2.0
"""What ``linnet compress`` ends with: size, time and memory, which blocks and layers lost most, what to type next."""

import os
import shlex
from pathlib import Path
from typing import TYPE_CHECKING

from linnet.cli.numbers import human_bytes, human_duration

if TYPE_CHECKING:
    from collections.abc import Sequence

    from linnet.compress import CompressResult

LEVELS = "▁▂▃▄▅▆▇█"
WORST = 3


def tell_result(result: "CompressResult", model: str, seconds: float, peak_bytes: int) -> None:
    """A few lines: sizes on standard output, the rest beside it."""
    from rich.markup import escape

    from linnet.cli.terminal import notices, output
    from linnet.compress.worst import block_errors, worst_modules

    output().print(
        f"[bold]{result.path}[/]  {human_bytes(result.source_bytes)} → {human_bytes(result.output_bytes)} "
        f"({result.bits_per_weight:.2f} bits per weight) in {human_duration(seconds)}, "
        f"peak memory {human_bytes(peak_bytes)}"
    )
    record, lines = result.manifest["record"], []
    if (calibrated := record["calibration"]) is not None:
        lines.append(
            f"calibrated on {escape(calibrated['name'])}: {calibrated['rows']} rows of {calibrated['length']} tokens"
        )
    names, errors = block_errors(record["blocks"])
    if errors:
        most = max(range(len(errors)), key=errors.__getitem__)
        lines.append(f"error of each block's output  {bars(errors)}  at most {errors[most]:.2g} ({names[most]})")
    if worst := worst_modules(result.layers, WORST):
        of = "output" if worst[0].of_output else "weight"
        shown = ", ".join(f"{loss.module} {loss.error:.2g}" for loss in worst)
        lines.append(f"largest errors of a layer's {of}: {escape(shown)}")
    for line in lines:
        notices().print(f"[dim]{line}[/]")
    out = shlex.quote(str(result.path))
    notices().print(f"[dim]next:[/] linnet eval {out} --against {shlex.quote(model)}   [dim]or[/]   linnet serve {out}")


def bars(values: "Sequence[float]") -> str:
    """One character a value, as high as it is beside the greatest; zero is the lowest."""
    top = max(values) or 1.0
    return "".join(LEVELS[min(int(value / top * len(LEVELS)), len(LEVELS) - 1)] for value in values)


def told_command(arguments: "Sequence[str]") -> str:
    """``linnet compress …`` as it was typed, paths by their last part: where things lay is nobody's business."""

    def shown(argument: str) -> str:
        option, equals, value = argument.partition("=")
        if equals and option.startswith("--"):
            return f"{option}={shown(value)}"
        if argument.startswith("-o") and len(argument) > 2:
            return f"-o{Path(argument[2:]).name}"
        local = argument.startswith(("/", ".", "~")) or os.path.exists(
            argument
        )  # Path's refuses names that are too long
        return (Path(argument).name or argument) if local and not argument.startswith("--") else argument

    words = [shown(argument) for argument in arguments]
    for place, option in enumerate(arguments[:-1]):
        if option in ("-o", "--output"):  # need not exist yet
            words[place + 1] = Path(arguments[place + 1]).name or arguments[place + 1]
    return shlex.join(["linnet", *words])
