# SPDX-License-Identifier: Apache-2.0
"""What a model can be converted to, by name: ``gguf:Q4_K``, ``dense``, ``dense:F16``, ``gptq``, ``gptq:W4A16-g32`` …"""

from dataclasses import dataclass

from linnet.errors import ConfigError
from linnet.formats.forms import WRITTEN_FORMS
from linnet.formats.forms.written import WrittenForm
from linnet.schemes.gguf_blocks import ENCODED

PLAIN_TYPES = ("BF16", "F16", "F32")
_TYPES: dict[str, tuple[str, ...]] = {"gguf": (*PLAIN_TYPES, *sorted(ENCODED)), "dense": PLAIN_TYPES}
ACCEPTED = (
    f"gguf:TYPE with {', '.join(_TYPES['gguf'])}; dense or dense:TYPE with {', '.join(PLAIN_TYPES)}; "
    f"{', '.join(WRITTEN_FORMS)}"
)


@dataclass(frozen=True)
class Target:
    """A form on disk, and the type its weights are wanted in; None where the source's schemes decide. ``written``: the
    form, where it is one of those in which quantised models are published."""

    form: str
    type: str | None = None
    written: WrittenForm | None = None

    def __str__(self) -> str:
        return self.form if self.type is None else f"{self.form}:{self.type}"


def parse_target(text: str) -> Target:
    """ConfigError lists what is accepted. Case does not matter; ``dense`` means bf16."""
    name, _, kind = text.strip().partition(":")
    form = name.lower()
    if form in WRITTEN_FORMS:
        return Target(form, kind.upper() or None, WRITTEN_FORMS[form](kind))
    if form not in _TYPES:
        raise ConfigError(f"nothing is converted to {text!r:.60}; accepted: {ACCEPTED}")
    if not kind and form == "dense":
        kind = "BF16"
    if kind.upper() not in _TYPES[form]:
        said = f"{kind!r:.40} is no type that {form} is written in" if kind else f"{form} needs a type"
        raise ConfigError(f"{said}; accepted: {', '.join(f'{form}:{accepted}' for accepted in _TYPES[form])}")
    return Target(form, kind.upper())
