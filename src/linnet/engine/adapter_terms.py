# SPDX-License-Identifier: Apache-2.0
"""An adapter's linears against the places of a program: what of it is added where."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from linnet.errors import CheckpointError
from linnet.formats.peft import AdapterLinear, PeftAdapter
from linnet.program.adapters import AdapterSite, LowRank


@dataclass(frozen=True, eq=False)
class Adapter:
    """An adapter that fits a program. ``terms``: by name of a low_rank_add. ``digest``: equal ones are equal in every
    number; ``base``: what it says it was trained on."""

    terms: Mapping[str, LowRank]
    digest: bytes
    rank: int
    base: str | None


def fit_adapter(adapter: PeftAdapter, sites: Sequence[AdapterSite]) -> Adapter:
    """Raises CheckpointError for a linear that the model has not, and for matrices of another shape."""
    by_module: dict[str, list[AdapterSite]] = {}
    for site in sites:
        by_module.setdefault(site.module, []).append(site)
    terms: dict[str, LowRank] = {}
    for name, linear in adapter.linears.items():
        module = _module(name, by_module, adapter)
        if by_module[module][0].name in terms:
            raise CheckpointError(f"{adapter.path}: the adapter changes {module[:120]} twice, once as {name[:120]}")
        _check(name, linear, by_module[module][0], adapter)
        for site in by_module[module]:
            terms[site.name] = LowRank(linear.down, _rows(linear, site), linear.factor)
    return Adapter(terms, adapter.digest, adapter.rank, adapter.base)


def _module(name: str, modules: Iterable[str], adapter: PeftAdapter) -> str:
    """The model's module of that name; wrappers of either name may stand in front of the other."""
    if name in modules:
        return name
    found = [module for module in modules if module.endswith("." + name) or name.endswith("." + module)]
    if len(found) == 1:
        return found[0]
    reason = "which fits several linears of the model" if found else "which is no linear of the model's layers"
    raise CheckpointError(f"{adapter.path}: the adapter changes {name[:120]}, {reason}")


def _check(name: str, linear: AdapterLinear, site: AdapterSite, adapter: PeftAdapter) -> None:
    found, wanted = (linear.up.shape[0], linear.down.shape[1]), (site.module_rows, site.columns)
    if found != wanted:
        raise CheckpointError(
            f"{adapter.path}: the adapter's {name[:120]} is of a linear {list(found)}; the model's is {list(wanted)}"
        )


def _rows(linear: AdapterLinear, site: AdapterSite) -> np.ndarray:
    if site.rows is None:
        return linear.up
    return np.concatenate([linear.up[start:stop] for start, stop in site.rows])
