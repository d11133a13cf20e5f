# SPDX-License-Identifier: Apache-2.0
"""The recipe that ``linnet compress`` is asked for: of its options, of a file, or of a name."""

from typing import TYPE_CHECKING, Any

import typer

from linnet.cli.declaring import Given
from linnet.errors import ConfigError, UnsupportedError
from linnet.extras import install_command

if TYPE_CHECKING:
    from types import ModuleType

    from linnet.compress import Recipe

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


def list_recipes(context: typer.Context, recipe: str | None) -> str | None:
    """``--recipe list`` asks for no model."""
    if recipe != "list" or context.resilient_parsing:
        return recipe
    from rich.table import Table

    from linnet.cli.terminal import output

    room, table = compress_room(), Table(box=None, show_header=False, padding=(0, 2, 0, 0))
    for name in room.recipe_names():
        table.add_row(f"[bold]{name}[/]", room.when_to_use(name))
    output().print(table)
    raise typer.Exit


def compress_room() -> "ModuleType":
    """linnet.compress, where PyTorch is there."""
    try:
        from linnet import compress
    except ImportError as error:
        raise UnsupportedError(f"compressing needs PyTorch: {install_command('compress')}") from error
    return compress


def chosen_recipe(context: typer.Context, given: Given) -> "Recipe":
    """What the options say together."""
    if given["recipe"] is not None:
        return _read_recipe(context, given)
    made: Recipe = compress_room().make_recipe(
        given["scheme"],
        given["algorithm"],
        options=dict(_setting(text) for text in given["setting"] or ()),
        group_size=_group_size(given["group_size"]),
        **{name: given[name] for name in DATA_OPTIONS},
    )
    return made


def _read_recipe(context: typer.Context, given: Given) -> "Recipe":
    """The recipe, a named one with the data options that were typed; ConfigError for options it decides itself."""
    from msgspec.structs import replace

    room, recipe = compress_room(), given["recipe"]
    named = room.is_name(recipe)
    typed = {key: name for key, name in RECIPE_OPTIONS.items() if _is_given(context, key)}
    refused = [name for key, name in typed.items() if not (named and key in DATA_OPTIONS)]
    if refused:
        own = "a recipe of your own" if named else recipe
        raise ConfigError(f"--recipe decides everything that {', '.join(refused)} would; write it into {own} instead")
    found: Recipe = replace(room.read_recipe(recipe), **{key: given[key] for key in typed})
    return found


def _is_given(context: typer.Context, parameter: str) -> bool:
    """Whether a value comes from the command line or the environment, not from the default."""
    source = context.get_parameter_source(parameter)
    return source is not None and source.name in ("COMMANDLINE", "ENVIRONMENT")


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
