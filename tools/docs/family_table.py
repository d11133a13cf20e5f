# SPDX-License-Identifier: Apache-2.0
"""The families' part of docs/support.md: what each is made of, read off the spec of a published config, and whether its
program runs. Part of ``support_matrix.py``.

Blocks that are alike are built once, so that the largest model costs no more than the smallest.
"""

import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from linnet.backends.select import choose_backend, refused_ops
from linnet.formats.gguf.architectures import Architecture
from linnet.formats.gguf.architectures_read import READ
from linnet.models.build import build_program
from linnet.models.families import FAMILIES, MODEL_TYPES, arch_spec
from linnet.models.inventory import linear_shapes
from linnet.models.spec import ArchSpec, AttentionSpec, LayerSpec, MlpSpec
from linnet.program.choose_numerics import choose_numerics
from linnet.schemes import fit_groups, parse_scheme

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "tests" / "unit" / "models"))
from published_configs import PUBLISHED

BACKENDS = ("reference", "cpu")
SCHEMES = ("W8A16", "W4A16")
HEAD = """
## Families

A published config of each: its blocks as the spec has them, and whether both backends execute the program of the dense
model, of W8A16 and of W4A16, by both policies. Logits of tiny models of every row are compared with transformers' to
1e-4 (`tests/golden/test_families.py`, dense; `test_compressed_families.py`, compressed and read again).

| architecture | config | heads | positions | norms | feed-forward | GGUF | dense | W8A16 | W4A16 |
|---|---|---|---|---|---|---|---|---|---|
"""


def _few(words: Iterator[str]) -> str:
    return ", ".join(dict.fromkeys(words))


def _heads(layer: LayerSpec) -> str:
    mixer = layer.mixer
    if not isinstance(mixer, AttentionSpec):
        return f"state space, {mixer.x.outputs // mixer.head_size} of {mixer.head_size} × {mixer.states}"
    window = f", window {mixer.window}" if mixer.window is not None else ""
    return f"{mixer.heads} / {mixer.kv_heads} of {mixer.head_size}{window}"


def _positions(spec: ArchSpec, layer: LayerSpec) -> str:
    if not isinstance(layer.mixer, AttentionSpec):
        return "none"
    rope = layer.mixer.rope
    if rope is not None:
        part = "" if rope.rotary_size == layer.mixer.head_size else f" {rope.rotary_size}"
        return f"rope{part}{' of neighbours' if rope.style == 'interleaved' else ''}"
    if layer.mixer.alibi_slopes is not None:
        return "ALiBi"
    return "none" if spec.positions is None else f"learned, {spec.positions.rows}"


def _norms(layer: LayerSpec) -> str:
    mixer, mlp = layer.mixer, layer.feed_forward
    shared = layer.parallel_residual and mlp is not None and mixer.norm == mlp.norm
    places = {"before": mixer.norm, "behind": mixer.post_norm, "of the sum": mixer.stream_norm}
    found = [place for place, norm in places.items() if norm is not None]
    if isinstance(mixer, AttentionSpec) and mixer.query_norm is not None:
        found.append("queries and keys" if mixer.norm_whole else "heads of queries and keys")
    flavour = layer.first_norm.flavour + (", bias" if layer.first_norm.bias else "")
    halves = "; parallel" + (", one for both" if shared else "") if layer.parallel_residual else ""
    return f"{flavour}: {', '.join(found)}{halves}"


def _feed_forward(layer: LayerSpec) -> str:
    mlp = layer.feed_forward
    if mlp is None:
        return "none"
    gated = f"{mlp.activation}{'' if mlp.gate is None else ', gated'}"
    if isinstance(mlp, MlpSpec):
        return gated
    return f"{gated}, {mlp.chosen} of {mlp.experts} experts{'' if mlp.shared is None else ' and a shared one'}"


def _runs(spec: ArchSpec, scheme: str | None) -> str:
    """Which backends execute it by both policies, or what they refuse."""
    shapes = linear_shapes(spec)
    stored: dict[str, Any] = {}
    if scheme is not None:
        stored = dict(fit_groups(dict.fromkeys(shapes, parse_scheme(scheme).linear), shapes))
    built = build_program(spec, lambda name: stored.get(name.removesuffix(".weight")) or "bf16")
    refused = {
        name: reasons
        for name in BACKENDS
        for policy in ("fast", "exact")
        if (reasons := refused_ops(choose_backend(name), choose_numerics(built, policy)))
    }
    return "; ".join(f"{name}: {reasons[0]}" for name, reasons in refused.items()) or "yes"


def _families(row: Architecture) -> set[str]:
    """Which families a file of this architecture may be of."""
    return {row.family, *(MODEL_TYPES[name] for name in row.also), *(each.family for each in row.variants.values())}


def _line(architecture: str, name: str, spec: ArchSpec) -> str:
    kinds = tuple(dict.fromkeys(spec.layers))
    names = [row.name for row in READ.values() if architecture in _families(row)]
    cells = [
        f"`{architecture}`",
        name,
        _few(map(_heads, kinds)),
        _few(_positions(spec, layer) for layer in kinds),
        _few(map(_norms, kinds)),
        _few(map(_feed_forward, kinds)),
        ", ".join(dict.fromkeys(names)) or "–",
        *(_runs(replace(spec, layers=kinds), scheme) for scheme in (None, *SCHEMES)),
    ]
    return f"| {' | '.join(cells)} |\n"


def section() -> str:
    """One row for each family."""
    specs = {name: arch_spec(config) for name, (config, _) in PUBLISHED.items()}
    shown = {spec.family: name for name, spec in reversed(specs.items())}
    return HEAD + "".join(_line(family, shown[family], specs[shown[family]]) for family in FAMILIES)
