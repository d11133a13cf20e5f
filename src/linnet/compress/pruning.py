# SPDX-License-Identifier: Apache-2.0
"""Prune: whole units go, and what is left is an ordinary smaller checkpoint of the same family.

It crosses blocks, since a config has one number for all of them, and changes shapes, so it comes before everything
else. ``prepare`` needs shapes alone, which do not depend on what goes; what goes is decided by a pass over the dense
model.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from math import ceil
from typing import Any

import numpy as np
import torch

from linnet.compress.cut import Cut, cut_layers, cut_model, cut_units
from linnet.compress.dependency import Indices, UnitGroup, unit_groups
from linnet.compress.gradients import BACK
from linnet.compress.importance import Importance, PruneOptions
from linnet.errors import ConfigError, UnsupportedError
from linnet.models.load import ModelSource
from linnet.models.spec import AttentionSpec
from linnet.schemes.scheme import LinearScheme

_NAMES = {
    "neurons": "neurons of a feed-forward",
    "heads": "query heads that share a KV head",
    "kv_groups": "KV heads",
    "layers": "layers",
}


class Prune:
    """Which units go is not decided yet; ``importance`` will."""

    def __init__(self, algorithm: str, importance: Importance) -> None:
        self.algorithm, self.importance = algorithm, importance
        options: PruneOptions = importance.options
        if options.what not in importance.kinds:
            raise ConfigError(
                f"{algorithm} ranks {' and '.join(importance.kinds)}, not {options.what} (what of a prune step)"
            )

    @property
    def reads_rows(self) -> bool:
        """Whether calibration rows have to run for it."""
        return bool(self.importance.statistics) or self.importance.salience

    @property
    def passes(self) -> int:
        """How often rows, or weights alone, are looked at: forth, and back too."""
        return 1 + BACK if self.importance.salience else 1

    def groups(self, source: ModelSource) -> tuple[UnitGroup, ...]:
        """The groups of its kind of unit in every block. UnsupportedError if there are none."""
        what = self.importance.options.what
        found = unit_groups(source.program, what)
        if not found or len({group.columns.shape for group in found}) > 1:
            raise UnsupportedError(f"a {source.spec.family} has no {what} that can be pruned alike in every layer")
        return found

    def prepare(self, source: ModelSource) -> ModelSource:
        """See ModelTransform.prepare: the shapes are those of any choice."""
        groups = self.groups(source)
        return self.decided(source, [torch.arange(len(group.columns)) for group in groups]).prepare(source)

    def apply(self, source: ModelSource, schemes: Mapping[str, LinearScheme], seed: int) -> ModelSource:
        """See ModelTransform.apply."""
        raise AssertionError("what goes has not been decided")

    def decided(self, source: ModelSource, scores: Sequence[torch.Tensor]) -> "DecidedPrune":
        """``scores`` of each group's units: the least of each pool go. ConfigError: a count that cannot be."""
        groups, options = self.groups(source), self.importance.options
        if options.what == "layers":
            count = len(groups)
            leave = _left(options.leave, count)
            ranked = (
                torch.cat(list(scores)).double().index_fill(0, torch.tensor(sorted(leave), dtype=torch.long), torch.inf)
            )
            gone = how_many(options, count, count - len(leave))
            kept = [_greatest(ranked, np.arange(count)[None], gone)]
            cut = cut_layers(source, kept[0].tolist())
            layers = [source.spec.layers[index] for index in kept[0]]
        else:
            pools = groups[0].pools
            gone = how_many(options, pools.shape[1], pools.shape[1])
            kept = [_greatest(each, group.pools, gone) for each, group in zip(scores, groups, strict=True)]
            _check_heads(source, groups[0], len(kept[0]))
            cut, layers = cut_units(source, groups, kept), list(source.spec.layers)
        return DecidedPrune(cut, layers, self._record(groups, kept, scores))

    def _record(
        self, groups: Sequence[UnitGroup], kept: Sequence[Indices], scores: Sequence[torch.Tensor]
    ) -> dict[str, Any]:
        """For the manifest: how many are left of how many, and of heads and layers also which."""
        layers = groups[0].kind == "layers"
        own = [torch.cat(list(scores))] if layers else scores
        share = [float(each[torch.from_numpy(left)].sum() / each.sum()) for each, left in zip(own, kept, strict=True)]
        record: dict[str, Any] = {
            "algorithm": self.algorithm,
            "what": groups[0].kind,
            "of": len(own[0]),
            "kept": len(kept[0]),
            "importance_kept": [round(each, 4) for each in share],
        }
        if groups[0].kind != "neurons":
            record["which"] = kept[0].tolist() if layers else [left.tolist() for left in kept]
        return record


@dataclass(frozen=True, eq=False)
class DecidedPrune:
    """A ModelTransform. ``layers``: what of the original's is left; ``record``: what was decided, for the manifest."""

    cut: Cut
    layers: Sequence[Any]
    record: Mapping[str, Any]

    def prepare(self, source: ModelSource) -> ModelSource:
        """See ModelTransform.prepare."""
        return cut_model(source, self.cut, self.layers)

    def apply(self, source: ModelSource, schemes: Mapping[str, LinearScheme], seed: int) -> ModelSource:
        """See ModelTransform.apply."""
        return replace(source, checkpoint=self.cut.rewritten(source.checkpoint))


def how_many(options: PruneOptions, count: int, free: int) -> int:
    """Of ``count`` units that compete, of which ``free`` may go, how many do. ConfigError says what is possible."""
    what = _NAMES[options.what]
    if options.ratio is None:
        gone, asked = options.count or 0, f"count {options.count}"
    elif options.what == "neurons":
        gone = count - ceil(count * (1 - options.ratio) / options.multiple - 1e-9) * options.multiple
        asked = f"ratio {options.ratio:g}, kept in multiples of {options.multiple}"
    else:
        gone, asked = round(count * options.ratio), f"ratio {options.ratio:g}"
        if abs(gone - count * options.ratio) > 0.05:
            gone = 0
    if 1 <= gone <= min(free, count - 1):
        return gone
    last = min(free, count - 1)
    step = options.multiple if options.what == "neurons" and options.ratio is not None else 1
    possible = [each for each in range(1, last + 1) if (count - each) % step == 0]
    shown = [*possible[:4], *(["..."] if len(possible) > 5 else possible[4:-1]), *possible[-1:]] if possible else []
    ways = ", ".join(each if isinstance(each, str) else f"{each} ({each / count:.3g})" for each in dict.fromkeys(shown))
    raise ConfigError(f"prune: {asked} of {count} {what} is not possible; possible counts (ratios): {ways or 'none'}")


def _greatest(scores: torch.Tensor, pools: Indices, gone: int) -> Indices:
    """Units that stay, ascending: of every pool all but the ``gone`` least; ties go to the earlier unit."""
    order = torch.argsort(-scores[torch.from_numpy(pools)], dim=1, stable=True).numpy()
    return np.sort(np.take_along_axis(pools, order, axis=1)[:, : pools.shape[1] - gone].ravel())


def _left(leave: Sequence[int], count: int) -> set[int]:
    wrong = next((index for index in leave if not -count <= index < count), None)
    if wrong is not None:
        raise ConfigError(f"leave of a prune step names layer {wrong}; there are 0 to {count - 1}, or -{count} to -1")
    return {index % count for index in leave}


def _check_heads(source: ModelSource, group: UnitGroup, kept: int) -> None:
    """transformers refuses a config whose hidden size is no multiple of its heads."""
    if group.kind == "neurons":
        return
    mixer, width = source.spec.layers[0].mixer, source.spec.hidden_size
    assert isinstance(mixer, AttentionSpec), "heads are units of attention"
    units, pools = len(group.columns), len(group.pools)
    of_unit = mixer.heads // units
    if width % (kept * of_unit):
        fits = [count for count in range(pools, units, pools) if width % (count * of_unit) == 0]
        possible = ", ".join(str(count * of_unit) for count in fits) or "none"
        raise ConfigError(
            f"prune: {kept * of_unit} heads would be left, which do not divide the hidden size {width}; such a config "
            f"is refused by what loads it; possible are {possible}"
        )
