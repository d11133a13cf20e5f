# SPDX-License-Identifier: Apache-2.0
"""What a person reads when something is wrong: one sentence, in the spelling of what was typed.

The rooms below speak of Python parameters (``max_model_len``); the sentences are theirs, only the names become options
here. What the command-line parser refuses is said in the same way.
"""

import re
import sys
from collections.abc import Collection, Iterable, Iterator, Mapping
from typing import Any

import typer
from typer.core import TyperCommand, TyperGroup

from linnet.cli.recipes import decided_by
from linnet.cli.serve_options import SERVING
from linnet.errors import LinnetError
from linnet.logs import json_line

UsageError: Any = typer.BadParameter.__base__
"""What the parser raises for an option, argument or command that it cannot take."""

NAMES = {setting.parameter: setting.name for setting in SERVING}
"""Parameters -> what a command calls them."""

PHRASES = {"max_model_len": "context"}
"""What to call a parameter where the command has no option for it, if not by its own words."""

NUMBERS = {
    "int_parsing": "a whole number",
    "int_from_float": "a whole number",
    "float_parsing": "a number",
    "bool_parsing": "true or false",
    "greater_than_equal": "a number",
    "less_than_equal": "a number",
}
"""What pydantic found wrong -> what is accepted, bounds left out."""


SPELLINGS = {"model": ("-m", "--model"), "prompt": ("-p", "--prompt")}
"""How other programs call what are arguments here."""


KINDS = {
    "str": "TEXT",
    "text": "TEXT",
    "list[str]": "TEXT",
    "int": "N",
    "integer": "N",
    "float": "NUMBER",
    "path": "PATH",
    "bool": "",
    "boolean": "",
}
"""What the parser calls the type of a value -> what the help calls it; a switch has none."""


class Group(TyperGroup):
    """A command with commands of its own whose help calls values by words."""

    def format_help(self, ctx: Any, formatter: Any) -> None:
        """As typer's, with ``TEXT`` for ``<str>``."""
        _call_values_by_words(self.get_params(ctx), ctx)
        super().format_help(ctx, formatter)


class Command(TyperCommand):
    """A command whose errors name its options, whose help calls values by words, and whose arguments may be written as
    the options of ``SPELLINGS``."""

    def format_help(self, ctx: Any, formatter: Any) -> None:
        """As typer's, with ``MODEL`` for ``model`` and ``TEXT`` for ``<str>``."""
        _call_values_by_words(self.get_params(ctx), ctx)
        super().format_help(ctx, formatter)

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """``-m DIR -p TEXT`` is ``DIR TEXT``, for the arguments that this command has."""
        names = [parameter.name for parameter in self.params if parameter.param_type_name == "argument"]
        taking = {text for one in self.params if not getattr(one, "is_flag", True) for text in one.opts}
        return super().parse_args(ctx, positional(args, [name for name in names if name in SPELLINGS], taking))

    def invoke(self, ctx: Any) -> Any:
        """Run it; a LinnetError leaves with its parameters spelled as this command's options, or is a line of the log
        where that is for machines."""
        try:
            return super().invoke(ctx)
        except LinnetError as error:
            error.args = (spelled(str(error), error.settings, ctx), *error.args[1:])
            if ctx.params.get("log_format") != "json":
                raise
            print(json_line("error", {"code": error.code, "message": str(error)}), file=sys.stderr, flush=True)
            raise typer.Exit(error.exit_status) from None


def positional(args: list[str], names: list[str], taking: Collection[str] = ()) -> list[str]:
    """``args`` with the options that stand for the arguments ``names`` put where these arguments belong.

    Nothing behind ``--`` is touched, nor the value of an option in ``taking``. The first of ``names`` goes to the
    front, the others behind everything.
    """
    end = args.index("--") if "--" in args else len(args)
    left, values, index = [], dict[str, str](), 0
    while index < end:
        if args[index] in taking:
            left += args[index : min(index + 2, end)]
            index += 2
            continue
        word, equals, value = args[index].partition("=")
        name = next((name for name in names if word in SPELLINGS[name] and name not in values), None)
        if name is None or (equals and not word.startswith("--")) or (not equals and index + 1 >= end):
            left.append(args[index])
        elif equals:
            values[name] = value
        else:
            values[name] = args[index + 1]
            index += 1
        index += 1
    first = [values[name] for name in names[:1] if name in values]
    others = [values[name] for name in names[1:] if name in values]
    return [*first, *left, *(args[end:] or (["--"] if others else [])), *others]


def spelled(sentence: str, settings: tuple[str, ...], ctx: Any) -> str:
    """``sentence`` with each parameter in ``settings`` replaced by the option that the command takes it from.

    A part of a path is no parameter, whatever its name.
    """
    options = {parameter.name: _option(parameter) for parameter in ctx.command.params}
    recipe = ctx.params.get("recipe")
    for setting in sorted(set(settings), key=len, reverse=True):
        name = NAMES.get(setting, setting)
        if recipe is not None and decided_by(recipe, name):
            said = f"{setting} in {recipe}"
        else:
            said = options.get(name) or PHRASES.get(setting, setting.replace("_", " "))
        written = said.replace("\\", r"\\")  # re.sub reads backslashes in what it puts
        sentence = re.sub(rf"(?<![\w./-]){re.escape(setting)}(?![\w/-]|\.\w)", written, sentence)
    return sentence


def refusal(error: Any) -> str:
    """The sentence for what the parser could not take, and where to read more; empty where it showed the help."""
    if type(error).__name__ == "NoArgsIsHelpError":
        return str(error.format_message())
    command = error.ctx.command_path if getattr(error, "ctx", None) is not None else "linnet"
    return f"{command}: {_reason(error)}\nSee: {command} --help"


def _reason(error: Any) -> str:
    parameter = getattr(error, "param", None)
    missing = type(error).__name__ == "MissingParameter"
    if parameter is not None and missing:
        said = _option(parameter) or _placeholder(parameter)
        return f"{said} is missing: {_plain(getattr(parameter, 'help', '') or '')}"
    if parameter is not None:
        return _refused_value(error, _option(parameter) or _placeholder(parameter))
    option = getattr(error, "option_name", None)
    if type(error).__name__ == "NoSuchOption":
        near = ", ".join(sorted(getattr(error, "possibilities", None) or ()))
        return f"there is no option {option}" + (f"; did you mean {near}?" if near else "")
    if type(error).__name__ == "BadOptionUsage":
        return f"{option} needs a value behind it"
    message = str(error.format_message())
    return message[:1].lower() + message[1:].rstrip(".")


def _refused_value(error: Any, said: str) -> str:
    for one in _details(error.__cause__):
        accepted = NUMBERS.get(one.get("type", ""))
        if accepted is not None:
            bounds = _bounds(getattr(error.param, "min", None), getattr(error.param, "max", None))
            return f"{said} is {one.get('input')}; accepted is {accepted}{bounds}"
    message = str(error.message)
    return f"{said}: {message[:1].lower()}{message[1:].rstrip('.')}"


def _bounds(least: float | None, most: float | None) -> str:
    if least is not None and most is not None:
        return f" from {least} to {most}"
    return f" of at least {least}" if least is not None else f" of at most {most}" if most is not None else ""


def _details(cause: BaseException | None) -> Iterator[Mapping[str, Any]]:
    """What pydantic, which typer checks values with, found wrong; nothing for older versions of typer."""
    errors = getattr(cause, "errors", None)
    yield from errors() if callable(errors) else ()


def _call_values_by_words(parameters: Iterable[Any], ctx: Any) -> None:
    for parameter in parameters:
        if parameter.metavar is None:
            parameter.metavar = _value_word(parameter, ctx)
        if _option(parameter) is None:
            parameter.display_type_rich = lambda ctx: None  # an argument's word says enough


def _value_word(parameter: Any, ctx: Any) -> str | None:
    if _option(parameter) is None:
        return str(parameter.name).upper()
    display = getattr(parameter, "display_type", None)  # typer 0.29; before, click's name of the type
    kind = str(display(ctx)) if callable(display) else str(getattr(parameter.type, "name", ""))
    return KINDS.get(kind.strip("<>"))


def _option(parameter: Any) -> str | None:
    """The first long spelling of an option, else its first; None for an argument."""
    spellings = [text for text in parameter.opts if text.startswith("-")]
    return next((text for text in spellings if text.startswith("--")), next(iter(spellings), None))


def _placeholder(parameter: Any) -> str:
    return str(parameter.metavar or parameter.name).upper()


def _plain(markup: str) -> str:
    return re.sub(r"\[/?[a-z]*\]", "", markup).rstrip(".")
