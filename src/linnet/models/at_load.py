# SPDX-License-Identifier: Apache-2.0
"""A dense checkpoint as a quantised model, without a copy on disk: weights are rounded to nearest when they are read.

The same numbers as ``linnet compress --algorithm rtn`` writes (a row's codes depend on that row alone, so rows of a
fused tensor may be rounded apart).
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any

import numpy as np

from linnet.errors import ConfigError
from linnet.models.load import ModelSource
from linnet.program.choose_numerics import quantised_kv
from linnet.program.program import Weight, WeightRef
from linnet.schemes import LinearScheme, PackedWeight, check_shapes, fit_groups, parse_scheme, quantize_weight
from linnet.schemes.layouts import stored_bytes


@dataclass(frozen=True)
class QuantisedSource(ModelSource):
    """A ``ModelSource`` whose weights of these modules are quantised as they are read."""

    scheme_name: str = ""
    schemes: Mapping[str, LinearScheme] = field(default_factory=dict)

    def weight(self, ref: WeightRef) -> "np.ndarray[Any, Any] | PackedWeight":
        """See ModelSource.weight."""
        stored, scheme = super().weight(ref), self._scheme(ref)
        return stored if scheme is None or isinstance(stored, PackedWeight) else quantize_weight(stored, scheme)

    def stamp(self) -> tuple[str, str]:
        """See ModelSource.stamp: another scheme is another content."""
        place, state = super().stamp()
        return f"{place}#{self.scheme_name}", state

    def stored_bytes(self, ref: WeightRef) -> int:
        """Bytes the quantised weight takes in memory."""
        scheme = self._scheme(ref)
        if scheme is None:
            return super().stored_bytes(ref)
        rows, columns = self.checkpoint.info(ref.checkpoint_name).shape
        taken = rows if ref.rows is None else sum(stop - start for start, stop in ref.rows)
        return stored_bytes(scheme, (taken, columns))

    def for_context(self, tokens: int) -> ModelSource:
        """See ModelSource.for_context."""
        dense = ModelSource(**{item.name: getattr(self, item.name) for item in fields(ModelSource)})
        return quantised_at_load(dense.for_context(tokens), self.scheme_name)

    def _scheme(self, ref: WeightRef) -> LinearScheme | None:
        return self.schemes.get(ref.checkpoint_name.removesuffix(".weight"))


def quantised_at_load(source: ModelSource, scheme_name: str) -> QuantisedSource:
    """``source`` with every linear rounded to nearest in a scheme of ``schemes.presets`` (``W8A16``, ``W4A16-g32`` …).

    ConfigError: an unknown scheme, a group that does not fit, a model that is quantised already.
    """
    preset = parse_scheme(scheme_name)
    if source.checkpoint.schemes() or source.checkpoint.quantization.terms:
        raise ConfigError(
            f"{source.checkpoint.path.name} is quantised already; quantize is for dense models", settings=["quantize"]
        )
    if preset.linear.weight.numbers.learned:
        raise ConfigError(
            f"the tables of {preset.name} are learned, which is linnet compress's work; quantize rounds to nearest",
            settings=["quantize"],
        )
    if preset.linear.input is not None and not preset.linear.input.dynamic:
        raise ConfigError(
            f"{preset.name} needs scales of activations from calibration: compress the model with it",
            settings=["quantize"],
        )
    spec = source.spec
    shapes, classes = source.scheme_targets()
    resolved = preset.scheme_map(None if spec.tied_head else spec.head, spec.embedding).resolve(classes)
    if not preset.fixed_group:
        resolved = fit_groups(resolved, shapes)
    check_shapes(resolved, shapes)
    schemes = {module: scheme for module, scheme in resolved.items() if scheme is not None}

    def stored(weight: Weight) -> Weight:
        scheme = schemes.get(weight.ref.checkpoint_name.removesuffix(".weight"))
        return weight if scheme is None else replace(weight, dtype=scheme)

    states = source.program.states
    if preset.kv is not None:
        states = tuple(replace(state, dtype=quantised_kv(preset.kv)) for state in states)
    program = replace(source.program, weights=tuple(map(stored, source.program.weights)), states=states)
    own = {item.name: getattr(source, item.name) for item in fields(ModelSource)}
    return QuantisedSource(**{**own, "program": program}, scheme_name=preset.name, schemes=schemes)
