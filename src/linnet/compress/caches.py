# SPDX-License-Identifier: Apache-2.0
"""What goes into the KV cache: where the keys and values of each layer are made, and the scales found for them.

Linnet itself computes a scale per token and head when it stores a key or a value, which is finer than any that is
known beforehand. The calibrated ones are written for engines that take one scale a layer.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from linnet.compress.algorithms.static import Static
from linnet.compress.statistic import Statistic
from linnet.formats.scheme_record import scheme_to_record
from linnet.models.load import ModelSource
from linnet.program.choose_numerics import quantised_kv
from linnet.schemes.elements import ElementName
from linnet.schemes.scheme import Scheme

SCALES_BYTES = 2 * 4
"""Of a layer's scales."""


@dataclass(frozen=True)
class Cache:
    """One layer's: ``key`` and ``value`` are the values that are stored; ``module`` is the attention's name."""

    module: str
    segment: int
    key: str
    value: str

    def scales(
        self, element: ElementName, static: Static, statistics: Mapping[str, Mapping[str, Statistic]]
    ) -> dict[str, np.ndarray]:
        """compressed-tensors' tensors: name -> fp32 [1]."""
        scheme, found = quantised_kv(element), {}
        for name, tap in (("k_scale", self.key), ("v_scale", self.value)):
            scale = static.scale(f"{self.module}.{name}", scheme, statistics[tap])
            found[f"{self.module}.{name}"] = np.array([scale], np.float32)
        return found


def caches_of(source: ModelSource) -> tuple[Cache, ...]:
    """In the order of the layers."""
    program, found = source.program, list[Cache]()
    blocks = [index for index, segment in enumerate(program.segments) if segment.kind == "block"]
    for layer, index in enumerate(blocks):
        segment, module = program.segments[index], source.spec.attention_module(layer)
        for op in program.ops[segment.start : segment.stop]:
            if op.kind == "kv_write":
                found.append(Cache(module, index, op.inputs[0], op.inputs[1]))
    return tuple(found)


def cache_record(element: ElementName, calibrated: bool) -> dict[str, object]:
    """``kv_cache_scheme``: with scales that are stored, or with one per token computed when it is."""
    return scheme_to_record(Scheme(element, "tensor" if calibrated else "token", dynamic=not calibrated))
