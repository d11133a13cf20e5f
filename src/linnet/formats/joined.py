# SPDX-License-Identifier: Apache-2.0
"""Tensors of which a layer has several that are parts of one, as that one: what everything above reads and writes."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from linnet.errors import CheckpointError
from linnet.formats.header import TensorInfo
from linnet.formats.tensor_files import FilesOverOthers, TensorFiles

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class Joined:
    """Tensors ``published`` with ``{layer}`` and ``{part}`` in their names, shown as one ``whole`` [parts, ...] with
    ``{layer}`` in its."""

    published: str
    whole: str


class JoinedFiles(FilesOverOthers):
    """Other files with the parts of a tensor put together when they are asked for. Implements ``TensorFiles``.

    Raises CheckpointError where parts are missing or differ in shape or type.
    """

    def __init__(self, files: TensorFiles, rules: tuple[Joined, ...]) -> None:
        self._files, self.config, self.described_by = files, files.config, files.described_by
        parts: dict[str, dict[int, str]] = {}
        for name in files.tensors:
            found = next(((match, rule) for rule in rules if (match := _pattern(rule).fullmatch(name))), None)
            if found is not None:
                match, rule = found
                parts.setdefault(rule.whole.format(layer=match["layer"]), {})[int(match["part"])] = name
        self._parts = {whole: self._in_order(whole, named) for whole, named in parts.items()}
        gone = {name for names in self._parts.values() for name in names}
        tensors = {name: info for name, info in files.tensors.items() if name not in gone}
        for whole, names in self._parts.items():
            first = files.tensors[names[0]]
            shape = (len(names), *first.shape)
            tensors[whole] = replace(first, shape=shape, nbytes=len(names) * first.nbytes)
        self.tensors: Mapping[str, TensorInfo] = dict(sorted(tensors.items()))

    def _in_order(self, whole: str, named: dict[int, str]) -> tuple[str, ...]:
        if whole in self._files.tensors:
            raise CheckpointError(f"{self.described_by.parent}: {whole} is there in parts and as a whole")
        count, infos = max(named) + 1, [self._files.tensors[name] for name in named.values()]
        kinds = {(info.dtype, info.shape) for info in infos}
        if count > len(named) or len(kinds) > 1:
            where = self.described_by.parent
            raise CheckpointError(f"{where}: of the {count} parts of {whole} some are missing or unlike the others")
        return tuple(named[part] for part in range(count))

    def view(self, name: str) -> Array:
        """See TensorFiles.view; of a tensor in parts a new array."""
        if name not in self._parts:
            return self._files.view(name)
        return np.stack([self._files.view(part) for part in self._parts[name]])

    def raw(self, name: str) -> memoryview:
        """See TensorFiles.raw."""
        if name not in self._parts:
            return self._files.raw(name)
        return memoryview(b"".join(self._files.raw(part) for part in self._parts[name]))


def _pattern(rule: Joined) -> re.Pattern[str]:
    number = "(0|[1-9][0-9]{0,8})"
    pattern = re.escape(rule.published).replace(r"\{layer\}", f"(?P<layer>{number})")
    return re.compile(pattern.replace(r"\{part\}", f"(?P<part>{number})"))
