# SPDX-License-Identifier: Apache-2.0
"""What a model can be converted to, by name: ``gguf:Q4_K``, ``dense``, ``dense:F16``, ``compressed-tensors``."""

from dataclasses import dataclass
from typing import Literal

from linnet.errors import ConfigError
from linnet.schemes.gguf_blocks import ENCODED

Form = Literal["gguf", "dense", "compressed-tensors"]
PLAIN_TYPES = ("BF16", "F16", "F32")
_TYPES: dict[Form, tuple[str, ...]] = {
    "gguf": (*PLAIN_TYPES, *sorted(ENCODED)),
    "dense": PLAIN_TYPES,
    "compressed-tensors": (),
}
ACCEPTED = (
    f"gguf:TYPE with {', '.join(_TYPES['gguf'])}; dense or dense:TYPE with {', '.join(PLAIN_TYPES)}; compressed-tensors"
)


@dataclass(frozen=True)
class Target:
    """A form on disk, and the type its weights are wanted in; None where the source's schemes decide."""

    form: Form
    type: str | None = None

    def __str__(self) -> str:
        return self.form if self.type is None else f"{self.form}:{self.type}"


def parse_target(text: str) -> Target:
    """ConfigError lists what is accepted. Case does not matter; ``dense`` means bf16."""
    name, _, kind = text.strip().partition(":")
    form = next((form for form in _TYPES if form == name.lower()), None)
    if form is None:
        raise ConfigError(f"nothing is converted to {text!r:.60}; accepted: {ACCEPTED}")
    kinds = _TYPES[form]
    if not kinds:
        if kind:
            raise ConfigError(f"{form} takes no type, not {kind!r:.40}: the schemes stay what they are")
        return Target(form)
    if not kind and form == "dense":
        kind = "BF16"
    if kind.upper() not in kinds:
        said = f"{kind!r:.40} is no type that {form} is written in" if kind else f"{form} needs a type"
        raise ConfigError(f"{said}; accepted: {', '.join(f'{form}:{accepted}' for accepted in kinds)}")
    return Target(form, kind.upper())
