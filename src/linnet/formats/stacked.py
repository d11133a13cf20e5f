# SPDX-License-Identifier: Apache-2.0
"""Tensors that hold all experts' of a layer, as one tensor for each: what everything above reads and writes."""

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from linnet.formats.header import TensorInfo
from linnet.formats.tensor_files import FilesOverOthers, TensorFiles

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class Stacked:
    """A tensor ``published`` [experts, ...] and what each expert's is called, with ``{layer}`` in both and ``{expert}``
    in ``each``. ``by_inputs``: each is a matrix that lies [inputs, outputs] and is shown the other way round;
    ``keeps_axis``: each is still shown as one of a stack."""

    published: str
    each: str
    by_inputs: bool = False
    keeps_axis: bool = False


class ApartFiles(FilesOverOthers):
    """Other files with their stacked tensors taken apart: views, but for those that lie by inputs. Implements
    ``TensorFiles``."""

    def __init__(self, files: TensorFiles, stacked: tuple[Stacked, ...]) -> None:
        self._files, self.config, self.described_by = files, files.config, files.described_by
        self._own: dict[str, tuple[str, int, Stacked]] = {}
        patterns = [(_pattern(rule.published), rule) for rule in stacked]
        tensors: dict[str, TensorInfo] = {}
        for name, info in files.tensors.items():
            found = next(((match, rule) for pattern, rule in patterns if (match := pattern.fullmatch(name))), None)
            if found is None or len(info.shape) < (3 if found[1].by_inputs else 2):
                tensors[name] = info
                continue
            match, rule = found
            experts = info.shape[0]
            shape = info.shape[:0:-1] if rule.by_inputs else info.shape[1:]
            shape = (1, *shape) if rule.keeps_axis else shape
            for expert in range(experts):
                own = rule.each.format(layer=match["layer"], expert=expert)
                size = info.nbytes // experts
                tensors[own] = replace(info, shape=shape, nbytes=size, offset=info.offset + expert * size)
                self._own[own] = name, expert, rule
        self.tensors: Mapping[str, TensorInfo] = dict(sorted(tensors.items()))

    @property
    def apart(self) -> Collection[str]:
        """Names of what was taken apart."""
        return self._own.keys()

    @property
    def turned(self) -> frozenset[str]:
        """Names of those that are no views."""
        return frozenset(name for name, (_, _, rule) in self._own.items() if rule.by_inputs)

    def view(self, name: str) -> Array:
        """See TensorFiles.view."""
        if name not in self._own:
            return self._files.view(name)
        whole, expert, rule = self._own[name]
        stored = self._files.view(whole)
        own = stored[expert : expert + 1] if rule.keeps_axis else stored[expert]
        return np.ascontiguousarray(own.T) if rule.by_inputs else own

    def raw(self, name: str) -> memoryview:
        """See TensorFiles.raw: as it is stored."""
        if name not in self._own:
            return self._files.raw(name)
        (whole, expert, _), size = self._own[name], self.tensors[name].nbytes
        return self._files.raw(whole)[expert * size : (expert + 1) * size]


def _pattern(published: str) -> re.Pattern[str]:
    before, _, after = published.partition("{layer}")
    return re.compile(f"{re.escape(before)}(?P<layer>0|[1-9][0-9]*){re.escape(after)}")
