# SPDX-License-Identifier: Apache-2.0
"""``linnet compress``: a checkpoint goes in, a smaller one comes out."""

import time
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from linnet.cli import options
from linnet.cli.numbers import human_bytes, human_duration, parse_bytes, parse_count
from linnet.cli.own_text import write_text
from linnet.errors import ConfigError, UnsupportedError
from linnet.extras import install_command

if TYPE_CHECKING:
    from collections.abc import Callable

    from linnet.cli.terminal import Stages
    from linnet.compress import ProgressEvent


RECIPE_OPTIONS = {
    "scheme": "--scheme",
    "algorithm": "--algorithm",
    "setting": "--set",
    "group_size": "--group-size",
    "calibration": "--calibration",
    "calibration_rows": "--calibration-rows",
    "calibration_length": "--calibration-length",
    "seed": "--seed",
}
"""What a recipe decides, by parameter: with --recipe none of these may be given."""


def compress(
    context: typer.Context,
    model: options.Model,
    out: Annotated[Path, options.option("--output", "-o", help="Directory to create.", show_default=False)],
    scheme: Annotated[
        str,
        options.option(help="What the numbers look like: W4A16, W4A16-g32, W8A16, W8A8, W2A16, NF4, …; -head8, -asym."),
    ] = "W4A16",
    algorithm: Annotated[
        str,
        options.option(
            help="How codes are chosen: rtn, hqq, kmeans (no data), gptq, autoround, awq, obc, llm_int8, squeezellm; "
            "smoothquant, quarot, lqer, eora."
        ),
    ] = "gptq",
    setting: Annotated[
        list[str] | None,
        options.option(
            "--set", metavar="NAME=VALUE", help="An option of the algorithm; may be given again.", show_default=False
        ),
    ] = None,
    recipe: Annotated[
        Path | None, options.option(help="A YAML recipe instead of all these options.", show_default=False)
    ] = None,
    group_size: Annotated[
        str | None, options.option(help="Columns that share a scale: a number, or auto.", show_default="the scheme's")
    ] = None,
    calibration: Annotated[
        Path | None, options.option(help="UTF-8 text to calibrate on.", show_default="the model writes its own")
    ] = None,
    calibration_rows: Annotated[int, options.option(help="Rows to calibrate on.")] = 64,
    calibration_length: Annotated[
        int | None,
        options.option(
            parser=parse_count, metavar="TOKENS", help="Tokens in each row.", show_default="512, or the context"
        ),
    ] = None,
    memory_ceiling: Annotated[
        int | None,
        options.option(
            parser=parse_bytes, metavar="SIZE", help="Refuse to start if more is needed.", show_default="none"
        ),
    ] = None,
    seed: options.Seed = 0,
    overwrite: Annotated[
        bool, options.option("--overwrite", help="Replace an earlier result of Linnet's, and nothing else.")
    ] = False,
    restart: Annotated[
        bool, options.option("--restart", help="Forget an interrupted run instead of resuming it.")
    ] = False,
    revision: options.Revision = None,
) -> None:
    """Quantise a model, one block in memory at a time; interrupted runs resume where they stopped.

    Who loads the result: W4A16, W8A16, W8A8, FP8 also vLLM and transformers; W3A16, W2A16 also transformers
    (all as compressed-tensors); NF4, TERNARY and -head4, -head8 Linnet alone.

    [dim]Examples[/]

      linnet compress ./my-model -o ./my-model-w4
      linnet compress ./my-model -o ./my-model-w8 --scheme W8A16 --algorithm rtn
      linnet compress org/model -o ./model-w4 --scheme W4A16-g32 --calibration notes.txt
    """
    from rich.markup import escape

    from linnet.cli.terminal import notices, output, peak_memory_bytes, stages
    from linnet.formats import resolve_model

    given = [name for key, name in RECIPE_OPTIONS.items() if _is_given(context, key)]
    if recipe is not None and given:
        raise ConfigError(f"--recipe decides everything that {', '.join(given)} would; write it into {recipe} instead")
    started = time.monotonic()
    with stages() as progress:
        progress.begin("compress", "checking the model and the recipe")
        try:
            from linnet import compress as room
        except ImportError as error:
            raise UnsupportedError(f"compressing needs PyTorch: {install_command('compress')}") from error
        chosen = (
            room.read_recipe(recipe)
            if recipe is not None
            else room.make_recipe(
                scheme,
                algorithm,
                options=dict(_setting(text) for text in setting or ()),
                group_size=_group_size(group_size),
                calibration=None if calibration is None else str(calibration),
                calibration_rows=calibration_rows,
                calibration_length=calibration_length,
                seed=seed,
            )
        )
        result = room.compress(
            resolve_model(model, revision),
            out,
            chosen,
            write_text=partial(write_text, purpose="calibration", option="--calibration", progress=progress),
            observer=observer(progress),
            memory_ceiling_bytes=memory_ceiling,
            restart=restart,
            overwrite=overwrite,
        )
    if result.nothing_done:
        output().print(f"[bold]{result.path}[/] is already there, made by this very command: nothing done")
        return
    output().print(
        f"[bold]{result.path}[/]  {human_bytes(result.source_bytes)} → {human_bytes(result.output_bytes)} "
        f"({result.bits_per_weight:.2f} bits per weight) in {human_duration(time.monotonic() - started)}, "
        f"peak memory {human_bytes(peak_memory_bytes())}"
    )
    calibrated = result.manifest["record"]["calibration"]
    if calibrated is not None:
        rows = f"{calibrated['rows']} rows of {calibrated['length']} tokens"
        notices().print(f"[dim]calibrated on {escape(calibrated['name'])}: {rows}[/]")


def _is_given(context: typer.Context, parameter: str) -> bool:
    """Whether a value comes from the command line or the environment, not from the default."""
    source = context.get_parameter_source(parameter)
    return source is not None and source.name in ("COMMANDLINE", "ENVIRONMENT")


def observer(progress: "Stages") -> "Callable[[ProgressEvent], None]":
    """Passes the compressor's events on to the terminal; work is counted over the whole run."""
    return lambda event: progress.update("compress", event.done, event.total, event.layer, event.eta_s)


def _setting(text: str) -> tuple[str, Any]:
    """``damping=0.05`` -> ("damping", 0.05): values are read as YAML scalars."""
    import yaml

    name, equals, value = text.partition("=")
    if not name or not equals:
        raise ConfigError(f"--set {text!r}: give NAME=VALUE, such as damping=0.05")
    try:
        return name, yaml.safe_load(value)
    except yaml.YAMLError:
        raise ConfigError(f"--set {text!r}: {value!r} is not a number, a word, true or false") from None


def _group_size(text: str | None) -> int | str | None:
    if text is None or text == "auto":
        return text
    if not text.isdigit() or int(text) == 0:
        raise ConfigError(f"--group-size {text!r}: give a positive number, or auto")
    return int(text)
