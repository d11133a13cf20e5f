# SPDX-License-Identifier: Apache-2.0
"""Scheme names of the trade (``W4A16-g32-asym``) -> schemes. The only place that knows the names."""

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from difflib import get_close_matches
from typing import cast

from linnet.errors import ConfigError
from linnet.schemes.elements import ElementName
from linnet.schemes.scheme import Granularity, LinearScheme, Scheme
from linnet.schemes.scheme_map import SchemeMap

_INT8_PER_TOKEN = Scheme("int8", "token", dynamic=True)
_INT4_PER_TOKEN = Scheme("int4", "token", dynamic=True)
_FP8_PER_TOKEN = Scheme("fp8_e4m3", "token", dynamic=True)
_FP8_STATIC = Scheme("fp8_e4m3", "tensor")

PRESETS: dict[str, LinearScheme] = {
    "W8A16": LinearScheme(Scheme("int8", "channel")),
    "W4A16": LinearScheme(Scheme("int4", "group", 128)),
    "W3A16": LinearScheme(Scheme("int3", "group", 32)),
    "W2A16": LinearScheme(Scheme("int2", "group", 32)),
    "W8A8": LinearScheme(Scheme("int8", "channel"), _INT8_PER_TOKEN),
    "W4A8": LinearScheme(Scheme("int4", "group", 128), _INT8_PER_TOKEN),
    "W4A4": LinearScheme(Scheme("int4", "group", 128), _INT4_PER_TOKEN),
    "FP8": LinearScheme(Scheme("fp8_e4m3", "channel")),
    "FP8_DYNAMIC": LinearScheme(Scheme("fp8_e4m3", "channel"), _FP8_PER_TOKEN),
    "FP8_STATIC": LinearScheme(Scheme("fp8_e4m3", "channel"), _FP8_STATIC),
    "W8A8C8": LinearScheme(Scheme("fp8_e4m3", "channel"), _FP8_STATIC),
    "NF4": LinearScheme(Scheme("nf4", "group", 64)),
    "TERNARY": LinearScheme(Scheme("ternary", "channel")),
    "BINARY": LinearScheme(Scheme("binary", "channel")),
    "KMEANS4": LinearScheme(Scheme("kmeans4", "channel")),
    "KMEANS3": LinearScheme(Scheme("kmeans3", "channel")),
    "KMEANS2": LinearScheme(Scheme("kmeans2", "channel")),
}
PRESET_KV: dict[str, ElementName] = {"W8A8C8": "fp8_e4m3"}
"""What the KV cache is stored as where the name says so."""
KV_SUFFIXES: dict[str, ElementName] = {"kv8": "int8", "kvfp8": "fp8_e4m3", "kv4": "int4"}
SUFFIXES: dict[str, str] = {
    "-gN": "groups of N columns share a scale",
    "-channel": "one scale per output channel",
    "-tensor": "one scale for the whole weight",
    "-asym": "with a zero point (int only)",
    "-agN": "activations in groups of N columns instead of whole tokens",
    "-static": "one calibrated scale for all activations of a linear",
    "-kv8": "the KV cache as int8",
    "-kvfp8": "the KV cache as fp8",
    "-kv4": "the KV cache as int4",
    "-head8": "embedding and head as int8 per channel",
    "-head4": "embedding and head as int4 in groups",
}


@dataclass(frozen=True)
class SchemePreset:
    """``linear`` for every linear; ``head`` for lm_head and embedding, None = kept dense (portable).

    ``fixed_group``: the name itself says -gN; otherwise the group size is a wish, and the largest that fits is taken.
    ``kv``: what the model prescribes for its KV cache; None: nothing.
    """

    name: str
    linear: LinearScheme
    head: LinearScheme | None = None
    fixed_group: bool = False
    kv: ElementName | None = None

    def scheme_map(self, head: str | None = None, embedding: str | None = None) -> SchemeMap:
        """The rules for a model: name the head and the embedding among the modules that will be resolved.

        A tied model passes ``head=None``: the embedding's scheme then also is the head's.
        """
        rules: list[tuple[str, LinearScheme | None]] = [(name, self.head) for name in (head, embedding) if name]
        return SchemeMap((*rules, ("Linear", self.linear)))


def parse_scheme(text: str) -> SchemePreset:
    """``NAME[-suffix...]`` -> preset; case does not matter. ConfigError lists the names and suffixes."""
    name, *suffixes = text.strip().split("-")
    if name.upper() == "FP8" and suffixes and suffixes[0].upper() in ("DYNAMIC", "STATIC"):
        name, suffixes = f"FP8_{suffixes[0].upper()}", suffixes[1:]
    linear = PRESETS.get(name.upper())
    if linear is None:
        raise _unknown(text, f"{name!r} is not a scheme", get_close_matches(name.upper(), PRESETS, n=1))
    if suffixes and len({_family(suffix) for suffix in suffixes}) != len(suffixes):
        raise _unknown(text, "two suffixes contradict or repeat each other")
    preset = SchemePreset(name.upper(), linear, None, False, PRESET_KV.get(name.upper()))
    for suffix in sorted(suffixes, key=lambda suffix: suffix.lower().startswith("head")):  # a head knows the groups
        preset = _with(suffix.lower(), preset, text)
    canonical = "-".join([name.upper(), *(suffix.lower() for suffix in suffixes)])
    return replace(preset, name=canonical)


def _with(suffix: str, preset: SchemePreset, text: str) -> SchemePreset:
    """The preset changed as a suffix says."""
    weight, inputs = preset.linear.weight, preset.linear.input
    head, fixed, kv = preset.head, preset.fixed_group, preset.kv
    if re.fullmatch(r"g[0-9]{1,6}", suffix):
        weight, fixed = replace(weight, granularity="group", group_size=_group_size(suffix[1:], text)), True
    elif suffix in ("channel", "tensor"):
        weight = replace(weight, granularity=cast("Granularity", suffix), group_size=None)
    elif suffix == "asym":
        if not weight.element.startswith("int"):
            raise _unknown(text, f"{preset.name} has no zero point, -asym is for int schemes")
        weight = replace(weight, symmetric=False)
    elif suffix == "head8":
        head = LinearScheme(Scheme("int8", "channel"))
    elif suffix == "head4":
        head = LinearScheme(Scheme("int4", "group", weight.group_size or 128))
    elif suffix in KV_SUFFIXES:
        kv = KV_SUFFIXES[suffix]
    elif inputs is None and (suffix == "static" or re.fullmatch(r"ag[0-9]{1,6}", suffix)):
        raise _unknown(text, f"{preset.name} does not round activations, as -{suffix} would have it")
    elif inputs is not None and suffix == "static":
        inputs = Scheme(inputs.element, "tensor")
    elif inputs is not None and re.fullmatch(r"ag[0-9]{1,6}", suffix):
        inputs = Scheme(inputs.element, "group", _group_size(suffix[2:], text), dynamic=True)
    else:
        raise _unknown(text, f"{'-' + suffix!r} is not a suffix")
    return SchemePreset(preset.name, LinearScheme(weight, inputs), head, fixed, kv)


def _group_size(digits: str, text: str) -> int:
    size = int(digits)
    if size < 8 or size % 8:
        raise _unknown(text, f"group size {size} is not a multiple of 8")
    return size


def _family(suffix: str) -> str:
    lower = suffix.lower()
    for start in ("head", "kv"):
        if lower.startswith(start):
            return start
    if lower == "static" or re.fullmatch(r"ag[0-9]+", lower):
        return "activations"
    return "granularity" if lower in ("channel", "tensor") or re.fullmatch(r"g[0-9]+", lower) else lower


def _unknown(text: str, reason: str, near: Sequence[str] = ()) -> ConfigError:
    suffixes = ", ".join(f"{suffix} ({meaning})" for suffix, meaning in SUFFIXES.items())
    meant = "".join(f"; did you mean {name}?" for name in near)
    return ConfigError(f"scheme {text!r}: {reason}; schemes: {', '.join(PRESETS)}; suffixes: {suffixes}{meant}")
