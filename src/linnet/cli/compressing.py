# SPDX-License-Identifier: Apache-2.0
"""``linnet compress``: a checkpoint goes in, a smaller one comes out."""

import sys
import time
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from linnet.cli import options
from linnet.cli.compressed import tell_result, told_command
from linnet.cli.numbers import Budget, human_bytes, human_duration, parse_budget, parse_bytes, parse_count
from linnet.cli.own_text import write_text
from linnet.errors import ConfigError, UnsupportedError
from linnet.extras import install_command

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import ModuleType

    from linnet.cli.terminal import Stages
    from linnet.compress import Estimate, MixedPlan, ProgressEvent, Recipe


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
"""What a recipe decides, by parameter: with the file of one none of these may be given."""

DATA_OPTIONS = ("calibration", "calibration_rows", "calibration_length", "seed")
"""Of these, what a named recipe leaves open."""


def decided_by(recipe: str, parameter: str) -> bool:
    """Whether a parameter's value comes from this recipe: the file of one says them all."""
    named = not any(sign in recipe for sign in "./\\")
    return parameter in RECIPE_OPTIONS and not (named and parameter in DATA_OPTIONS)


def _list_recipes(context: typer.Context, recipe: str | None) -> str | None:
    """``--recipe list`` asks for no model."""
    if recipe != "list" or context.resilient_parsing:
        return recipe
    from rich.table import Table

    from linnet.cli.terminal import output

    room, table = _room(), Table(box=None, show_header=False, padding=(0, 2, 0, 0))
    for name in room.recipe_names():
        table.add_row(f"[bold]{name}[/]", room.when_to_use(name))
    output().print(table)
    raise typer.Exit


def _room() -> "ModuleType":
    """linnet.compress, where PyTorch is there."""
    try:
        from linnet import compress
    except ImportError as error:
        raise UnsupportedError(f"compressing needs PyTorch: {install_command('compress')}") from error
    return compress


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
        str | None,
        options.option(
            metavar="NAME|FILE",
            callback=_list_recipes,
            is_eager=True,
            help="A recipe instead of these: its name (list shows them), or your own YAML file.",
            show_default=False,
        ),
    ] = None,
    budget: Annotated[
        Budget | None,
        options.option(
            parser=parse_budget,
            metavar="SIZE|BITS",
            help="Mixed precision: bits for each layer so that the result has at most 100MB, or 4.5bits a weight.",
            show_default=False,
        ),
    ] = None,
    group_size: Annotated[
        str | None, options.option(help="Columns that share a scale: a number, or auto.", show_default="the scheme's")
    ] = None,
    calibration: Annotated[
        Path | None,
        options.option(
            help="Text, .jsonl, .parquet or dataset to calibrate on.", show_default="the model writes its own"
        ),
    ] = None,
    calibration_rows: Annotated[int, options.option(help="Rows to calibrate on.")] = 64,
    calibration_length: Annotated[
        int | None,
        options.option(
            parser=parse_count, metavar="TOKENS", help="Tokens in each row.", show_default="512, or the context"
        ),
    ] = None,
    max_memory: Annotated[
        int | None,
        options.option(
            parser=parse_bytes, metavar="SIZE", help="Never use more: refuse to start, or stop.", show_default="none"
        ),
    ] = None,
    from_compressed: Annotated[
        bool, options.option("--from-compressed", help="Take a compressed model (GPTQ, GGUF …) as the original.")
    ] = False,
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
      linnet compress ./my-model -o ./my-model-w8a8 --recipe smooth-w8a8
      linnet compress ./my-model -o ./my-model-90 --budget 90MB
    """
    from linnet.cli.terminal import output, peak_memory_bytes, stages
    from linnet.formats import resolve_model
    from linnet.formats.manifest import MANIFEST_FILE
    from linnet.formats.target import check_replaceable

    started = time.monotonic()
    with stages() as progress:
        progress.begin("compress", "checking the model and the recipe")
        room = _room()
        chosen = (
            _read_recipe(context, room, recipe)
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
        directory = resolve_model(model, revision)
        shared: dict[str, Any] = {
            "write_text": partial(
                write_text, purpose="calibration", option="--calibration", progress=progress, max_memory=max_memory
            ),
            "observer": observer(progress),
        }
        if budget is not None:
            _check_alone(from_compressed, max_memory)
            if not (out / MANIFEST_FILE).is_file():  # else it may be this very command's result
                check_replaceable(out, overwrite)
            plan = room.mix(directory, chosen, lambda source: budget.bytes_for(source.parameters), **shared)
            chosen = plan.recipe
            _tell_plan(plan)
        result = room.compress(
            directory,
            out,
            chosen,
            memory_ceiling_bytes=max_memory,
            estimated=lambda found: progress.say(_estimate_line(found)),
            command=told_command(sys.argv[1:]),
            from_compressed=from_compressed,
            restart=restart,
            overwrite=overwrite,
            **shared,
        )
    if result.nothing_done:
        output().print(f"[bold]{result.path}[/] is already there, made by this very command: nothing done")
        return
    tell_result(result, model, time.monotonic() - started, peak_memory_bytes())


def _check_alone(from_compressed: bool, max_memory: int | None) -> None:
    """ConfigError for what weighing a model for a budget does not do."""
    if from_compressed:
        raise ConfigError("--budget weighs dense models only; --from-compressed goes with a scheme or a recipe")
    if max_memory is not None:
        raise ConfigError(
            "--budget keeps no ceiling while it weighs the model; give --max-memory or --budget, not both"
        )


def _read_recipe(context: typer.Context, room: "ModuleType", recipe: str) -> "Recipe":
    """The recipe, a named one with the data options that were typed; ConfigError for options it decides itself."""
    from msgspec.structs import replace

    named = room.is_name(recipe)
    given = {key: name for key, name in RECIPE_OPTIONS.items() if _is_given(context, key)}
    refused = [name for key, name in given.items() if not (named and key in DATA_OPTIONS)]
    if refused:
        own = "a recipe of your own" if named else recipe
        raise ConfigError(f"--recipe decides everything that {', '.join(refused)} would; write it into {own} instead")
    values = {key: context.params[key] for key in given}
    if values.get("calibration") is not None:
        values["calibration"] = str(values["calibration"])
    found: Recipe = replace(room.read_recipe(recipe), **values)
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


def _is_given(context: typer.Context, parameter: str) -> bool:
    """Whether a value comes from the command line or the environment, not from the default."""
    source = context.get_parameter_source(parameter)
    return source is not None and source.name in ("COMMANDLINE", "ENVIRONMENT")


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
