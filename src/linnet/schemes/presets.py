# SPDX-License-Identifier: Apache-2.0
"""Scheme names of the trade (``W4A16-g32-asym``) -> schemes. The only place that knows the names."""

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from difflib import get_close_matches

from linnet.errors import ConfigError
from linnet.schemes.scheme import LinearScheme, Scheme
from linnet.schemes.scheme_map import SchemeMap

_INT8_PER_TOKEN = Scheme("int8", "token", dynamic=True)
_FP8_PER_TOKEN = Scheme("fp8_e4m3", "token", dynamic=True)

PRESETS: dict[str, LinearScheme] = {
    "W8A16": LinearScheme(Scheme("int8", "channel")),
    "W4A16": LinearScheme(Scheme("int4", "group", 128)),
    "W3A16": LinearScheme(Scheme("int3", "group", 32)),
    "W2A16": LinearScheme(Scheme("int2", "group", 32)),
    "W8A8": LinearScheme(Scheme("int8", "channel"), _INT8_PER_TOKEN),
    "W4A8": LinearScheme(Scheme("int4", "group", 128), _INT8_PER_TOKEN),
    "FP8": LinearScheme(Scheme("fp8_e4m3", "channel")),
    "FP8_DYNAMIC": LinearScheme(Scheme("fp8_e4m3", "channel"), _FP8_PER_TOKEN),
    "NF4": LinearScheme(Scheme("nf4", "group", 64)),
    "TERNARY": LinearScheme(Scheme("ternary", "channel")),
    "KMEANS4": LinearScheme(Scheme("kmeans4", "channel")),
    "KMEANS2": LinearScheme(Scheme("kmeans2", "channel")),
}
SUFFIXES: dict[str, str] = {
    "-gN": "groups of N columns share a scale",
    "-channel": "one scale per output channel",
    "-asym": "with a zero point (int only)",
    "-head8": "embedding and head as int8 per channel",
    "-head4": "embedding and head as int4 in groups",
}


@dataclass(frozen=True)
class SchemePreset:
    """``linear`` for every linear; ``head`` for lm_head and embedding, None = kept dense (portable).

    ``fixed_group``: the name itself says -gN; otherwise the group size is a wish, and the largest that fits is taken.
    """

    name: str
    linear: LinearScheme
    head: LinearScheme | None = None
    fixed_group: bool = False

    def scheme_map(self, head: str | None = None, embedding: str | None = None) -> SchemeMap:
        """The rules for a model: name the head and the embedding among the modules that will be resolved.

        A tied model passes ``head=None``: the embedding's scheme then also is the head's.
        """
        rules: list[tuple[str, LinearScheme | None]] = [(name, self.head) for name in (head, embedding) if name]
        return SchemeMap((*rules, ("Linear", self.linear)))


def parse_scheme(text: str) -> SchemePreset:
    """``NAME[-suffix...]`` -> preset; case does not matter. ConfigError lists the names and suffixes."""
    name, *suffixes = text.strip().split("-")
    if name.upper() == "FP8" and suffixes and suffixes[0].upper() == "DYNAMIC":
        name, suffixes = "FP8_DYNAMIC", suffixes[1:]
    linear = PRESETS.get(name.upper())
    if linear is None:
        raise _unknown(text, f"{name!r} is not a scheme", get_close_matches(name.upper(), PRESETS, n=1))
    if suffixes and len({_family(suffix) for suffix in suffixes}) != len(suffixes):
        raise _unknown(text, "two suffixes contradict or repeat each other")
    weight, head, fixed_group = linear.weight, "", False
    for suffix in suffixes:
        lower = suffix.lower()
        if re.fullmatch(r"g[0-9]{1,6}", lower):
            size = int(lower[1:])
            if size < 8 or size % 8:
                raise _unknown(text, f"group size {size} is not a multiple of 8")
            weight, fixed_group = replace(weight, granularity="group", group_size=size), True
        elif lower == "channel":
            weight = replace(weight, granularity="channel", group_size=None)
        elif lower == "asym":
            if not weight.element.startswith("int"):
                raise _unknown(text, f"{name.upper()} has no zero point, -asym is for int schemes")
            weight = replace(weight, symmetric=False)
        elif lower in ("head8", "head4"):
            head = lower
        else:
            raise _unknown(text, f"{'-' + suffix!r} is not a suffix")
    head_scheme = None
    if head == "head8":
        head_scheme = LinearScheme(Scheme("int8", "channel"))
    elif head == "head4":
        head_scheme = LinearScheme(Scheme("int4", "group", weight.group_size or 128))
    canonical = "-".join([name.upper(), *(suffix.lower() for suffix in suffixes)])
    return SchemePreset(canonical, replace(linear, weight=weight), head_scheme, fixed_group)


def _family(suffix: str) -> str:
    lower = suffix.lower()
    if lower.startswith("head"):
        return "head"
    return "granularity" if lower == "channel" or re.fullmatch(r"g[0-9]+", lower) else lower


def _unknown(text: str, reason: str, near: Sequence[str] = ()) -> ConfigError:
    suffixes = ", ".join(f"{suffix} ({meaning})" for suffix, meaning in SUFFIXES.items())
    meant = "".join(f"; did you mean {name}?" for name in near)
    return ConfigError(f"scheme {text!r}: {reason}; schemes: {', '.join(PRESETS)}; suffixes: {suffixes}{meant}")
