# SPDX-License-Identifier: Apache-2.0
"""The keys of one architecture in a GGUF file's metadata, typed and bounded; remembers what was understood.

A key that nobody read and that is not empty might change what the model computes: ``finish`` refuses it by name, as
is done with the fields of a config.json.
"""

from typing import Any

import numpy as np

from linnet.errors import CheckpointError, UnsupportedError
from linnet.gguf import Metadata, shown

MAXIMUM = 1 << 30
_HARMLESS = frozenset(("vocab_size", "tensor_data_layout", "rope.scaling.finetuned", "attention.layer_norm_epsilon"))
"""Never change what a decoder computes, or repeat what the tensors say."""


class Hyperparameters:
    """``ARCHITECTURE.*`` of the metadata; keys are given without that beginning."""

    def __init__(self, metadata: Metadata, architecture: str) -> None:
        self.metadata = metadata
        self._prefix = f"{architecture}."
        self._understood: set[str] = set()

    def needed_size(self, key: str) -> int:
        """A whole number from 1; CheckpointError if it is missing."""
        found = self.size(key)
        assert found is not None, "size() without optional raises"
        return found

    def size(self, key: str, optional: bool = False) -> int | None:
        """A whole number from 1 to 2^30. 0 means missing: converters write it for what a model has not."""
        value = self._one_value(key)
        if value in (None, 0) and not isinstance(value, bool) and optional:
            return None
        if value is None:
            raise CheckpointError(f"{self.metadata.where}: {self._prefix}{key} is missing")
        if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= MAXIMUM:
            raise self._wrong(key, value, f"a whole number from 1 to {MAXIMUM} is needed")
        return value

    def number(self, key: str, default: float | None) -> float | None:
        """A finite number, or ``default``. A float32 comes as its shortest decimal."""
        self._understood.add(key)
        value = self.metadata.number(self._prefix + key)
        if value is not None and not np.isfinite(value):
            raise self._wrong(key, value, "a finite number is needed")
        return default if value is None else value

    def text(self, key: str) -> str | None:
        """A text, or None."""
        self._understood.add(key)
        return self.metadata.text(self._prefix + key)

    def flag(self, key: str, default: bool) -> bool:
        """True or false."""
        self._understood.add(key)
        value = self.metadata.get(self._prefix + key, default)
        if not isinstance(value, bool):
            raise self._wrong(key, value, "true or false is needed")
        return value

    def layer_flags(self, key: str, layers: int, every: int) -> list[bool]:
        """Which layers slide: a list of flags, or a number n of which every n-th layer does not; missing: ``every``."""
        self._understood.add(key)
        value = self.metadata.get(self._prefix + key, every)
        if isinstance(value, np.ndarray) and value.shape == (layers,):
            return [bool(flag) for flag in value]
        if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= MAXIMUM:
            raise self._wrong(key, value, f"a whole number from 1, or a list of {layers} flags, is needed")
        return [layer % value < value - 1 for layer in range(layers)]

    def require(self, key: str, *accepted: Any, why: str) -> None:
        """Refuse any value of a key but the accepted ones (or none)."""
        value = self._one_value(key)
        if value is not None and value not in accepted:
            raise UnsupportedError(f"{self.metadata.where}: {self._prefix}{key} is {shown(value)}: {why}")

    def finish(self) -> None:
        """Refuse every key that nobody understood and that is not empty, 0 or false."""
        unknown = [
            f"{key} = {shown(value)}"
            for key, value in sorted(self.metadata.items())
            if key.startswith(self._prefix)
            and key.removeprefix(self._prefix) not in self._understood | _HARMLESS
            and (not np.isscalar(value) or value not in (0, False, ""))
        ]
        if unknown:
            raise UnsupportedError(
                f"{self.metadata.where}: the metadata has keys that may change what this model computes", unknown
            )

    def _one_value(self, key: str) -> Any:
        """A value that is the same for every layer; lists of one value each are written by some converters."""
        self._understood.add(key)
        value = self.metadata.get(self._prefix + key)
        if not isinstance(value, np.ndarray):
            return value
        different = sorted({int(item) for item in value})
        if len(different) != 1:
            raise UnsupportedError(
                f"{self.metadata.where}: {self._prefix}{key} differs by layer ({', '.join(map(str, different[:4]))}"
                f"{', …' if len(different) > 4 else ''}); supported is one value for all layers"
            )
        return different[0]

    def _wrong(self, key: str, value: Any, needed: str) -> CheckpointError:
        return CheckpointError(f"{self.metadata.where}: {self._prefix}{key} is {shown(value)}; {needed}")
