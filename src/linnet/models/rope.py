# SPDX-License-Identifier: Apache-2.0
"""Rotary position frequencies from a config: default, linear, llama3, yarn, longrope.

Frequencies are computed in float32, step by step as the models were trained, since far positions feel their rounding.
What a backend makes of them is its own: the reference rounds position * frequency to float32 as transformers does, the
cpu backend keeps it in double; at position p their angles differ by up to p * 2**-24 radians.
"""

import math
from collections.abc import Mapping
from typing import Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from linnet.errors import CheckpointError, ConfigError, UnsupportedError
from linnet.models.config import MAXIMUM_POSITIONS, ConfigReader
from linnet.models.spec import RopeSpec

Frequencies = npt.NDArray[np.float32]

ROPE_TYPES = ("default", "linear", "llama3", "yarn", "longrope")


def base_wavelengths(theta: float, size: int) -> Frequencies:
    """theta ** (2i / size) for i in [0, size / 2), rounded to float32."""
    exponents = np.arange(0, size, 2, dtype=np.float32) / np.float32(size)
    return (np.float64(theta) ** exponents.astype(np.float64)).astype(np.float32)


def _llama3(frequencies: Frequencies, scaling: ConfigReader, original: int) -> Frequencies:
    """Llama 3.1's rule: long wavelengths are stretched, short ones kept, a smooth ramp between."""
    factor = scaling.number("factor")
    low, high = scaling.number("low_freq_factor"), scaling.number("high_freq_factor")
    if low >= high:
        raise CheckpointError(f"{scaling.where}: low_freq_factor {low} must be below high_freq_factor {high}")
    wavelengths = np.float32(2 * math.pi) / frequencies
    stretched = np.where(wavelengths > original / low, frequencies / np.float32(factor), frequencies)
    smooth = (np.float32(original) / wavelengths - np.float32(low)) / np.float32(high - low)
    blended = (1 - smooth) * stretched / np.float32(factor) + smooth * stretched
    medium = ~(wavelengths < original / high) & ~(wavelengths > original / low)
    return np.where(medium, blended, stretched).astype(np.float32)


def _yarn(
    wavelengths: Frequencies, scaling: ConfigReader, original: int, longest: int, theta: float
) -> tuple[Frequencies, float]:
    """YaRN (Peng et al. 2023, section 3.2 and 3.4): interpolate slow pairs, keep fast ones, warm the attention."""
    size = 2 * len(wavelengths)
    factor = scaling.optional_number("factor") or longest / original
    fast, slow = scaling.number("beta_fast", default=32.0), scaling.number("beta_slow", default=1.0)
    attention = scaling.optional_number("attention_factor")
    scaling.pass_over(
        "attn_factor", "transformers derives the attention factor from the other values, and so does Linnet"
    )
    mscale, mscale_all = scaling.optional_number("mscale"), scaling.optional_number("mscale_all_dim")

    def warmth(multiplier: float) -> float:
        return 1.0 if factor <= 1 else 0.1 * multiplier * math.log(factor) + 1.0

    if attention is None:
        attention = warmth(mscale) / warmth(mscale_all) if mscale and mscale_all else warmth(1.0)

    def turning_pair(rotations: float) -> float:
        return (size * math.log(original / (rotations * 2 * math.pi))) / (2 * math.log(theta))

    low, high = turning_pair(fast), turning_pair(slow)
    if scaling.flag("truncate", default=True):
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, size - 1)
    high = high + 0.001 if low == high else high
    ramp = np.clip((np.arange(size // 2, dtype=np.float32) - np.float32(low)) / np.float32(high - low), 0, 1)
    keep = np.float32(1) - ramp
    frequencies = (1 / (np.float32(factor) * wavelengths)) * (1 - keep) + (1 / wavelengths) * keep
    return frequencies.astype(np.float32), attention


def _longrope(
    wavelengths: Frequencies, scaling: ConfigReader, original: int, longest: int, context: int
) -> tuple[Frequencies, float]:
    """LongRoPE (Ding et al. 2024): one table of stretches up to the original context, another beyond it."""
    if original < 2:
        raise CheckpointError(f"{scaling.where}: original_max_position_embeddings is {original}; accepted is 2 or more")
    factor = scaling.optional_number("factor") or longest / original
    attention = scaling.optional_number("attention_factor")
    if attention is None:
        attention = 1.0 if factor <= 1 else math.sqrt(1 + math.log(factor) / math.log(original))
    for name in ("short_mscale", "long_mscale"):
        scaling.pass_over(name, "transformers derives one attention factor for both tables, and so does Linnet")
    short = scaling.numbers("short_factor", len(wavelengths))
    long = scaling.numbers("long_factor", len(wavelengths))
    stretch = np.array(long if context > original else short, dtype=np.float32)
    return (1 / (stretch * wavelengths)).astype(np.float32), attention


def plain_rope(size: int, style: Literal["half", "interleaved"], theta: float = 10000.0) -> RopeSpec:
    """Of families that have no words for another: the first ``size`` elements of a head turn."""
    frequencies = np.float32(1) / base_wavelengths(theta, size)
    return RopeSpec(size, style, tuple(float(value) for value in frequencies))


class Positions(NamedTuple):
    """A rope and how far it reaches, in tokens: as set up, and if a longer context were asked for."""

    rope: RopeSpec
    usable: int
    longest: int


def read_rope(
    config: ConfigReader,
    head_size: int,
    longest: int,
    max_context: int | None,
    theta_names: tuple[str, ...] = ("rope_theta",),
    fraction_names: tuple[str, ...] = (),
    default_fraction: float = 1.0,
    default_theta: float = 10000.0,
    type_aliases: Mapping[str, str] | None = None,
    default_original: int | None = None,
) -> Positions:
    """Rope of a config, old spelling (rope_theta, rope_scaling) or new (rope_parameters), and the usable context.

    ``longest`` is max_position_embeddings. ``max_context`` is what the caller wants to reach; it only matters to
    longrope, whose frequencies depend on it: None or at most the original context takes the short table and makes the
    original context the limit; more takes the long table for every position (a sequence cannot change tables half
    way, since its keys are cached rotated). Yarn reaches factor times its original context, also where
    max_position_embeddings was left at the original. Raises UnsupportedError for another rope type.
    """
    name, found = config.find(("rope_parameters", "rope_scaling"))
    nested: Mapping[str, Any] = {} if found is None else found
    if isinstance(nested, Mapping) and any(isinstance(value, Mapping) for value in nested.values()):
        raise UnsupportedError(f"{config.where}: {name} differs by layer type; supported is one rope for all layers")
    older = config.fields.get("rope_scaling")
    if older and found and older != found:
        raise _both(config)
    scaling = config.within(name, nested)
    theta = config.number(*theta_names, default=default_theta, low=1.0)
    fraction = config.number(*fraction_names, default=default_fraction, high=1.0) if fraction_names else 1.0
    fraction = scaling.number("partial_rotary_factor", default=fraction, high=1.0)
    if fraction != 1.0 and not fraction_names:
        raise UnsupportedError(f"{scaling.where}: partial_rotary_factor is {fraction}; this family turns whole heads")
    size = int(head_size * fraction)
    if size < 2 or size % 2:
        raise CheckpointError(
            f"{config.where}: {fraction} of a head of {head_size} is {size} rotary elements; they must come in pairs"
        )
    config.understood.add("original_max_position_embeddings")
    outside = config.optional_size("original_max_position_embeddings", maximum=MAXIMUM_POSITIONS) or default_original
    return _positions(scaling, theta, size, longest, max_context, outside, type_aliases or {})


def read_layer_ropes(
    config: ConfigReader, head_size: int, longest: int, max_context: int | None, thetas: Mapping[str, tuple[str, float]]
) -> dict[str, Positions]:
    """A rope per layer type, for families whose layers differ in it; whole heads turn.

    ``thetas``: layer type -> (the field that holds its theta in the old spelling, the default). rope_scaling, the old
    spelling, belongs to the first of them; the new one nests rope_parameters by layer type.
    """
    _, found = config.find(("rope_parameters",))
    _, older = config.find(("rope_scaling",))
    given: Mapping[str, Any] = {} if found is None else found
    if not isinstance(given, Mapping) or not given.keys() <= thetas.keys():
        raise UnsupportedError(
            f"{config.where}: rope_parameters is {given!r}; supported is an object with {' and '.join(thetas)}"
        )
    first = next(iter(thetas))
    inner = given.get(first)
    if older and isinstance(inner, Mapping) and older != {key: inner[key] for key in inner if key != "rope_theta"}:
        raise _both(config)
    ropes = {}
    for kind, (field, default) in thetas.items():
        name, fields = f"rope_parameters: {kind}", given.get(kind)
        if fields is None and kind == first and older:
            name, fields = "rope_scaling", older
        theta = config.number(field, default=default, low=1.0)
        scaling = config.within(name, {} if fields is None else fields)
        ropes[kind] = _positions(scaling, theta, head_size, longest, max_context, None, {})
    return ropes


def _both(config: ConfigReader) -> CheckpointError:
    return CheckpointError(f"{config.where}: rope_parameters and rope_scaling are both there and differ; one is needed")


def _positions(
    scaling: ConfigReader,
    theta: float,
    size: int,
    longest: int,
    max_context: int | None,
    outside: int | None,
    type_aliases: Mapping[str, str],
) -> Positions:
    """The rope that ``scaling`` describes for ``size`` rotary elements.

    ``theta`` and ``outside`` (the original context) are what the config says outside of it, if anything.
    """
    theta = scaling.number("rope_theta", default=theta, low=1.0)
    kind = scaling.choice(
        "rope_type", "type", accepted={kind: kind for kind in ROPE_TYPES} | dict(type_aliases), default="default"
    )
    original = longest
    if kind in ("llama3", "yarn", "longrope"):
        inside = scaling.size("original_max_position_embeddings", default=longest, maximum=MAXIMUM_POSITIONS)
        original = outside or inside
    attention, usable = 1.0, None
    with np.errstate(all="ignore"):
        wavelengths = base_wavelengths(theta, size)
        frequencies = np.float32(1) / wavelengths
        if kind == "linear":
            frequencies = frequencies / np.float32(scaling.number("factor"))
        elif kind == "llama3":
            frequencies = _llama3(frequencies, scaling, original)
        elif kind == "yarn":
            frequencies, attention = _yarn(wavelengths, scaling, original, longest, theta)
            factor = scaling.optional_number("factor") or 1.0
            longest = max(longest, int(min(factor * original, MAXIMUM_POSITIONS)))
        elif kind == "longrope":
            context = min(original, longest) if max_context is None else max_context
            frequencies, attention = _longrope(wavelengths, scaling, original, longest, context)
            usable = longest if context > original else min(original, longest)
    if not np.isfinite(frequencies).all() or not math.isfinite(attention):
        raise CheckpointError(f"{scaling.where}: these values lead to infinite rotary frequencies")
    if max_context is not None and max_context > longest:
        raise ConfigError(
            f"max_model_len is {max_context}; this model reaches {longest} tokens", settings=["max_model_len"]
        )
    scaling.ignore("finetuned", "original_max_position_embeddings")
    if kind == "default":
        scaling.ignore("factor")
    scaling.finish()
    rope = RopeSpec(size, "half", tuple(float(value) for value in frequencies), attention)
    return Positions(rope, longest if usable is None else usable, longest)
