# SPDX-License-Identifier: Apache-2.0
"""``linnet compress``: a checkpoint goes in, a smaller one comes out."""

import sys
import time
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from linnet.cli import options
from linnet.cli.compress_options import COMPRESSING
from linnet.cli.compressed import tell_result, told_command
from linnet.cli.declaring import Given, offers
from linnet.cli.numbers import human_bytes, human_duration
from linnet.cli.own_text import write_text
from linnet.cli.recipes import chosen_recipe, compress_room
from linnet.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Callable

    from linnet.cli.terminal import Stages
    from linnet.compress import Estimate, MixedPlan, ProgressEvent, Recipe


@offers(given=COMPRESSING)
def compress(
    context: typer.Context,
    model: options.Model,
    out: Annotated[Path, options.option("--output", "-o", help="Directory to create.", show_default=False)],
    *,
    given: Given,
) -> None:
    """Quantise a model, one block in memory at a time; interrupted runs resume where they stopped.

    Who loads the result: W4A16, W8A16, W8A8, FP8 also vLLM and transformers; W3A16, W2A16 also transformers
    (all as compressed-tensors); NF4, TERNARY, BINARY and -head4, -head8 Linnet alone.

    [dim]Examples[/]

      linnet compress ./my-model -o ./my-model-w4
      linnet compress ./my-model -o ./my-model-w8 --scheme W8A16 --algorithm rtn
      linnet compress org/model -o ./model-w4 --scheme W4A16-g32 --calibration notes.txt
      linnet compress ./my-model -o ./my-model-w8a8 --recipe smooth-w8a8
      linnet compress ./my-model -o ./my-model-90 --budget 90MB
    """
    from linnet.cli.terminal import output, stages
    from linnet.formats import resolve_model
    from linnet.process_memory import peak_bytes

    started, max_memory = time.monotonic(), given["max_memory"]
    with stages() as progress:
        progress.begin("compress", "checking the model and the recipe")
        room, recipe = compress_room(), chosen_recipe(context, given)
        directory = resolve_model(model, given["revision"])
        shared: dict[str, Any] = {
            "write_text": partial(
                write_text, purpose="calibration", option="--calibration", progress=progress, max_memory=max_memory
            ),
            "observer": observer(progress),
        }
        if given["budget"] is not None:
            recipe = _mixed(directory, out, recipe, given, shared)
        result = room.compress(
            directory,
            out,
            recipe,
            memory_ceiling_bytes=max_memory,
            estimated=lambda found: progress.say(_estimate_line(found)),
            command=told_command(sys.argv[1:]),
            **{name: given[name] for name in ("from_compressed", "restart", "overwrite")},
            **shared,
        )
    if result.nothing_done:
        output().print(f"[bold]{result.path}[/] is already there, made by this very command: nothing done")
        return
    tell_result(result, model, time.monotonic() - started, peak_bytes())


def _mixed(directory: Path, out: Path, recipe: "Recipe", given: Given, shared: dict[str, Any]) -> "Recipe":
    """The recipe with bits for every layer; what can be refused is, before the model is weighed."""
    if given["from_compressed"]:
        raise ConfigError("--budget weighs dense models only; --from-compressed goes with a scheme or a recipe")
    if given["max_memory"] is not None:
        raise ConfigError(
            "--budget keeps no ceiling while it weighs the model; give --max-memory or --budget, not both"
        )
    room, budget = compress_room(), given["budget"]
    room.check_target(out, directory, recipe, given["overwrite"])
    plan = room.mix(directory, recipe, lambda source: budget.bytes_for(source.parameters), **shared)
    _tell_plan(plan)
    found: Recipe = plan.recipe
    return found


def _tell_plan(plan: "MixedPlan") -> None:
    """Who got how many bits, and what one scheme everywhere would be."""
    from linnet.cli.terminal import notices

    shares = ", ".join(f"{scheme} {count}" for scheme, count in plan.modules.items())
    notices().print(f"[dim]linears by scheme: {shares}; {human_bytes(plan.bytes)}, KL foreseen {plan.kl:.4f}[/]")
    for uniform in plan.uniform:
        notices().print(
            f"[dim]  {uniform.scheme} everywhere: {human_bytes(uniform.bytes)}, KL foreseen {uniform.kl:.4f}[/]"
        )


def observer(progress: "Stages") -> "Callable[[ProgressEvent], None]":
    """Passes the compressor's events on to the terminal; work is counted over the whole run."""
    return lambda event: progress.update(
        "weigh" if event.stage == "weigh" else "compress", event.done, event.total, event.layer, event.eta_s
    )


def _estimate_line(found: "Estimate") -> str:
    """What the run will take, before the work begins."""
    return (
        f"needs about {human_bytes(found.memory_bytes)} of memory (± {found.memory_error:.0%}), "
        f"{human_bytes(found.disk_bytes)} of disk and {human_duration(found.seconds)} (± {found.time_error:.0%}), "
        "as one block has shown"
    )
