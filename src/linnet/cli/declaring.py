# SPDX-License-Identifier: Apache-2.0
"""Options that are fields of records: type and default come from the record, words and spelling from here, once.

A command names groups of settings that it offers and gets the values of each as one ``Given``, of which it makes the
records. What several commands take and no record has (which commit of a hub id, for instance) is a setting too.
"""

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import MISSING, dataclass, fields
from typing import Annotated, Any, TypeVar, get_type_hints

R = TypeVar("R")
OF_THE_RECORD: Any = object()


@dataclass(frozen=True, kw_only=True)
class Setting:
    """One option.

    name:    as in ``--name`` (dashes for underscores) unless ``option`` spells it; the environment's variable too.
    option:  help, parser and so on: what typer takes.
    record:  whose field it is; None: the command reads it itself. field: what the field is called, if not ``name``.
    kind, default: on the command line, where they are not the field's.
    convert: makes what the field holds of what was typed; may raise ConfigError.
    """

    name: str
    option: Any
    record: type | None = None
    field: str = ""
    kind: Any = OF_THE_RECORD
    default: Any = OF_THE_RECORD
    convert: Callable[[Any], Any] | None = None

    @property
    def parameter(self) -> str:
        """What Python callers call it."""
        return self.field or self.name

    def declared(self) -> inspect.Parameter:
        """What typer makes an option of."""
        kind, default = self.kind, self.default
        if self.record is not None:
            if kind is OF_THE_RECORD:
                kind = get_type_hints(self.record)[self.parameter]
            if default is OF_THE_RECORD:
                (default,) = (one.default for one in fields(self.record) if one.name == self.parameter)
        assert kind is not OF_THE_RECORD, f"{self.name} has no type"
        assert default is not OF_THE_RECORD, f"{self.name} has no default"
        assert default is not MISSING, f"{self.name} has no default"
        annotated = Annotated[kind, self.option]  # type: ignore[valid-type]
        return inspect.Parameter(self.name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotated)


class Given:
    """What the settings of a command were set to, on its line, in the environment or by default."""

    def __init__(self, values: Mapping[Setting, Any]) -> None:
        self._values = {
            setting: value if setting.convert is None else setting.convert(value) for setting, value in values.items()
        }

    def __getitem__(self, name: str) -> Any:
        """The value of the setting that Python callers call ``name``. KeyError if the command does not offer it."""
        value = self.get(name, OF_THE_RECORD)
        if value is OF_THE_RECORD:
            raise KeyError(name)
        return value

    def get(self, name: str, otherwise: Any = None) -> Any:
        """As ``[]``, with a value for what the command does not offer."""
        return next((value for setting, value in self._values.items() if setting.parameter == name), otherwise)

    def chosen(self) -> list[str]:
        """Options that are not at their defaults, as they are spelt."""
        found = []
        for setting, value in self._values.items():
            default = setting.declared().default
            if value != (default if setting.convert is None else setting.convert(default)):
                found.append(f"--{setting.name.replace('_', '-')}")
        return found

    def make(self, record: type[R], **others: Any) -> R:
        """The record of the settings that are its fields; ``others`` are what the command decides."""
        found = {setting.parameter: value for setting, value in self._values.items() if setting.record is record}
        return record(**{**found, **others})


def offers(**groups: Sequence[Setting]) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """A command that gets each of these groups as its keyword of that name, where its help lists the settings."""

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        declared: list[inspect.Parameter] = []
        for parameter in inspect.signature(command).parameters.values():
            group = groups.get(parameter.name)
            more = [parameter] if group is None else [setting.declared() for setting in group]
            declared += [one.replace(kind=inspect.Parameter.KEYWORD_ONLY) for one in more]

        def call(**values: Any) -> None:
            given = {
                name: Given({setting: values.pop(setting.name) for setting in group}) for name, group in groups.items()
            }
            command(**given, **values)

        call.__name__, call.__doc__, call.__module__ = command.__name__, command.__doc__, command.__module__
        vars(call)["__signature__"] = inspect.Signature(declared)
        call.__annotations__ = {}  # the signature has them
        return call

    return decorate
