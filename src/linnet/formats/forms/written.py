# SPDX-License-Identifier: Apache-2.0
"""What a form must be able to say so that a model can be written in it, and what such forms share."""

from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from math import gcd, prod
from typing import Any, Protocol

import numpy.typing as npt

from linnet.errors import ConfigError, UnsupportedError
from linnet.schemes import LinearScheme, PackedWeight, Scheme, largest_fitting_group
from linnet.schemes.groups import SMALLEST_GROUP

Array = npt.NDArray[Any]
HEAD_NAMES = ("lm_head", "embed_out")
USUAL_GROUP = 128
_SMALL_GROUP = 32
"""vLLM has no kernels for less."""
_SHOWN = 5


@dataclass(frozen=True)
class PlannedModule:
    """A module that is to be quantised: the scheme it lies in (None: plain numbers) and its [rows, columns]."""

    scheme: LinearScheme | None
    shape: tuple[int, int]

    @property
    def weights(self) -> int:
        """How many numbers."""
        return prod(self.shape)


class WrittenForm(Protocol):
    """One form that models are written in, with its settings. A frozen value without state."""

    @property
    def name(self) -> str:
        """What it is called in ``linnet convert --to`` and in errors."""

    def takes(self, module: str, scheme: LinearScheme | None) -> bool:
        """Whether a module (``scheme`` None: of plain numbers that may be rounded) lies quantised in this form."""

    def settled(self, modules: Mapping[str, PlannedModule], config: Mapping[str, Any]) -> "WrittenForm":
        """The form with what all modules have to share decided. UnsupportedError naming modules it cannot hold."""

    def held(self, scheme: LinearScheme) -> LinearScheme | None:
        """The form's own scheme that can mean the same numbers, codes unchanged; None if there is none."""

    def nearest(self, scheme: LinearScheme | None, shape: tuple[int, int]) -> LinearScheme | None:
        """What a weight is rounded to; None: it stays plain."""

    def lowest_zero_point(self, scheme: Scheme) -> int:
        """The least zero point (counted as codes are) that every reader of the form takes for what it is."""

    def tensors(self, packed: PackedWeight) -> dict[str, Array]:
        """Name relative to the module -> array, for a weight in one of the form's schemes, in any layout."""

    def record(
        self, modules: Mapping[str, LinearScheme], dense: Iterable[str], source: Mapping[str, Any]
    ) -> dict[str, Any]:
        """``quantization_config`` for these modules. ``dense``: modules whose matrices are plain; ``source``: the
        record of the model that was read, {} if it has none."""


def is_embedding(module: str) -> bool:
    """By name; generous, since naming a linear too is harmless."""
    last = module.rsplit(".", 1)[-1]
    return last not in HEAD_NAMES and ("embed" in last or last == "wte")


def is_head(module: str) -> bool:
    """By name."""
    return module.rsplit(".", 1)[-1] in HEAD_NAMES


def is_inner(module: str) -> bool:
    """A linear inside the layers: neither embedding nor head."""
    return not is_embedding(module) and not is_head(module)


def plain_linears(modules: Mapping[str, LinearScheme], dense: Iterable[str]) -> list[str]:
    """Modules that readers must leave plain, by name: linears that were not quantised, and the head."""
    left = {module for module in dense if not is_embedding(module)} - set(modules)
    return sorted(left | {HEAD_NAMES[0]} - set(modules))


def no_type(name: str, kind: str, meaning: str) -> None:
    """ConfigError if a type was asked of a form that has one alone."""
    if kind:
        raise ConfigError(f"{name} takes no type, not {kind!r:.40}: {meaning}")


def shares_scales(source: Scheme, target: Scheme) -> bool:
    """Whether all weights that share a scale in ``target`` share one in ``source``."""
    wide, narrow = source.columns_per_scale, target.columns_per_scale
    columns = wide is None or (narrow is not None and wide % narrow == 0)
    tall, low = _rows_per_scale(source), _rows_per_scale(target)
    return columns and (tall is None or (low is not None and tall % low == 0))


def regrouped(scales: Array, source: Scheme, target: Scheme, shape: tuple[int, int]) -> Array:
    """Scales or zero points of ``source`` repeated for ``target``, which ``shares_scales``."""
    rows, columns = shape
    low, tall = _rows_per_scale(target) or rows, _rows_per_scale(source) or rows
    narrow, wide = target.columns_per_scale or columns, source.columns_per_scale or columns
    at_rows = [start // tall for start in range(0, rows, low)]
    at_columns = [start // wide for start in range(0, columns, narrow)]
    return scales[at_rows][:, at_columns]


def _rows_per_scale(scheme: Scheme) -> int | None:
    """None: all of them."""
    if scheme.block is not None:
        return scheme.block[0]
    return None if scheme.granularity == "tensor" else 1


def has_whole_numbers(scheme: Scheme) -> bool:
    """Whether every weight is a whole number times its scale."""
    return scheme.numbers.integer and not scheme.minimum


def common_group(modules: Collection[PlannedModule], kept: Callable[[LinearScheme], bool]) -> int | None:
    """A group size for all of them, None: one scale per row. What the groups of those whose codes can be ``kept`` have
    in common; else what all groups of 32 and more have; else the largest up to 128 that divides all columns."""
    columns = gcd(*(module.shape[1] for module in modules))
    schemes = [module.scheme for module in modules if module.scheme is not None]
    sizes = [(scheme.weight.columns_per_scale or 0, kept(scheme)) for scheme in schemes]
    own = gcd(*(size for size, keeps in sizes if keeps)) or gcd(*(size for size, _ in sizes if size >= _SMALL_GROUP))
    if own >= SMALLEST_GROUP and columns % own == 0:
        return own
    return largest_fitting_group(columns, USUAL_GROUP)


def commonest(modules: Mapping[str, PlannedModule], of: Callable[[PlannedModule], Any]) -> Any:
    """What most weights have; the first of those that are equally common."""
    counts: dict[Any, int] = {}
    for module in modules.values():
        counts[of(module)] = counts.get(of(module), 0) + module.weights
    return max(counts, key=lambda key: counts[key])


def refuse_misfits(name: str, modules: Mapping[str, str]) -> None:
    """UnsupportedError naming modules and why each cannot be held, if there are any."""
    if not modules:
        return
    shown = [f"{module}: {why}" for module, why in list(modules.items())[:_SHOWN]]
    more = len(modules) - len(shown)
    raise UnsupportedError(
        f"{name} cannot hold {len(modules)} of the model's linears", [*shown, *([f"and {more} more"] if more else [])]
    )
