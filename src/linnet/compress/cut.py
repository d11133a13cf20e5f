# SPDX-License-Identifier: Apache-2.0
"""Cut: a model without some of its units, as a function of the stored tensors and a config that says so.

Nothing about families is known here: the fields that count units are changed in the config, the model is read anew, and
it must ask for exactly the tensors that are left and do the same with them. A config that cannot say so is refused in
words.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from linnet.compress.dependency import Indices, UnitGroup
from linnet.errors import LinnetError, UnsupportedError
from linnet.formats import Checkpoint
from linnet.formats.rewritten import Rewritten
from linnet.models.load import ModelSource, load_model
from linnet.models.spec import AttentionSpec, LayerSpec, Mixer

_TEXT = "text_config"
"""Where the fields lie in the config of a model that also reads something else than text."""

_NEURONS = ("intermediate_size", "n_inner", "ffn_dim", "ffn_hidden_size")
_LAYERS = ("num_hidden_layers", "n_layer", "num_layers")
_HEADS = ("num_attention_heads", "n_head")
_COUNTS = (*_NEURONS, *_LAYERS, *_HEADS, "num_key_value_heads")
_KINDS = "layer_types"


@dataclass(frozen=True, eq=False)
class Cut:
    """``kept``: tensor, by the name it then has -> axis -> the indices that stay; ``other``: what else is new."""

    kept: Mapping[str, Mapping[int, Indices]]
    other: Rewritten

    def rewritten(self, checkpoint: Checkpoint) -> Checkpoint:
        """The checkpoint without what is cut; its tensors are cut as they are read."""
        return checkpoint.rewritten(self._rewrite, self.other)

    def _rewrite(self, name: str, view: Callable[[str], np.ndarray]) -> np.ndarray | None:
        if name not in self.kept:
            return None
        values = view(name)
        for axis, kept in self.kept[name].items():
            values = np.take(values, kept, axis=axis)
        return values


def cut_units(model: ModelSource, groups: Sequence[UnitGroup], kept: Sequence[Indices]) -> Cut:
    """Of every group's units only ``kept`` (ascending), as many in each group."""
    dropped: dict[tuple[str, int], list[Indices]] = {}
    for group, stays in zip(groups, kept, strict=True):
        goes = np.setdiff1d(np.arange(len(group.columns)), stays)
        for part in group.parts:
            dropped.setdefault((part.tensor, part.axis), []).append(part.indices[goes].ravel())
    left: dict[str, dict[int, Indices]] = {}
    shapes: dict[str, tuple[int, ...]] = {}
    for (name, axis), gone in dropped.items():
        shape = shapes.get(name, model.checkpoint.info(name).shape)
        stays = np.setdiff1d(np.arange(shape[axis]), np.concatenate(gone))
        left.setdefault(name, {})[axis] = stays
        shapes[name] = (*shape[:axis], len(stays), *shape[axis + 1 :])
    fields = _neurons if groups[0].kind == "neurons" else _heads
    settings = _settings(model, fields(model, groups[0], len(kept[0])))
    return Cut(left, Rewritten(shapes=shapes, settings=settings))


def _neurons(model: ModelSource, group: UnitGroup, count: int) -> dict[str, Any]:
    return {_spelling(model, _NEURONS): count}


def _heads(model: ModelSource, group: UnitGroup, count: int) -> dict[str, Any]:
    attention = model.spec.layers[0].mixer
    assert isinstance(attention, AttentionSpec), "heads are units of attention"
    heads, kv_heads = attention.heads * count // len(group.columns), attention.kv_heads
    if group.kind == "kv_groups" or attention.heads == kv_heads:
        kv_heads = kv_heads * count // len(group.columns)
    return {_spelling(model, _HEADS): heads, "num_key_value_heads": kv_heads, "head_dim": attention.head_size}


def cut_layers(model: ModelSource, kept: Sequence[int]) -> Cut:
    """Only the blocks ``kept`` (ascending), numbered anew."""
    layers = model.spec.layers
    fields: dict[str, Any] = {_spelling(model, _LAYERS): len(kept)}
    kinds = _fields(model.checkpoint.config).get(_KINDS)
    if kinds is None and len(set(layers)) > 1:
        windows = [mixer.window for mixer in model.spec.attentions.values()]
        if len(windows) < len(layers):
            raise UnsupportedError("layers of different kinds of mixers cannot be cut: no field says which are left")
        kinds = ["full_attention" if window is None else "sliding_attention" for window in windows]
    if kinds is not None:
        fields[_KINDS] = [kinds[index] for index in kept]
    stem = layers[0].first_norm.module.partition("{layer}")[0]
    names = model.checkpoint.names()
    inside = [[name for name in names if name.startswith(f"{stem}{index}.")] for index in range(len(layers))]
    renamed = {
        f"{stem}{place}.{name.removeprefix(f'{stem}{index}.')}": name
        for place, index in enumerate(kept)
        for name in inside[index]
    }
    gone = {name for block in inside for name in block} - renamed.keys()
    copies = {new: old for new, old in renamed.items() if new != old}
    return Cut({}, Rewritten(copies, gone, settings=_settings(model, fields)))


def cut_model(model: ModelSource, cut: Cut, layers: Sequence[LayerSpec]) -> ModelSource:
    """The model that is left; ``layers``: those of the original that are. UnsupportedError if its config has no words
    for it."""
    fields = _fields(cut.other.settings)
    shown = ", ".join(f"{name} {value}" for name, value in fields.items() if isinstance(value, int) and name in _COUNTS)
    what = f"a {model.spec.family} whose config says {shown}"
    try:
        found = load_model(cut.rewritten(model.checkpoint))
    except LinnetError as error:
        raise UnsupportedError(f"what is left after pruning would be {what}, and that cannot be: {error}") from error
    before, after = ([_same(layer.mixer) for layer in each] for each in (layers, found.spec.layers))
    if before != after:
        raise UnsupportedError(f"{what} would compute something else than what is left after pruning")
    return found


def _same(mixer: Mixer) -> Mixer:
    """What of attention has to be as before: all but how many heads there are and how long its projections."""
    if not isinstance(mixer, AttentionSpec):
        return mixer
    none = replace(mixer.query, tensor_rows=0, columns=0, rows=None)
    return replace(mixer, query=none, key=none, value=none, output=none, heads=0, kv_heads=0)


def _spelling(model: ModelSource, names: tuple[str, ...]) -> str:
    fields = _fields(model.checkpoint.config)
    return next((name for name in names if name in fields), names[0])


def _fields(config: Mapping[str, Any]) -> Mapping[str, Any]:
    text = config.get(_TEXT)
    return text if isinstance(text, Mapping) else config


def _settings(model: ModelSource, fields: Mapping[str, Any]) -> dict[str, Any]:
    """Fields of the config that change, at the place where it has its own."""
    config = model.checkpoint.config
    return dict(fields) if _fields(config) is config else {_TEXT: {**_fields(config), **fields}}
