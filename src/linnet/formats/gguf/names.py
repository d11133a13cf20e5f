# SPDX-License-Identifier: Apache-2.0
"""ggml's tensor names <-> Hugging Face's, and what converters do to a tensor on the way, to be undone and redone."""

import re
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from linnet.formats.gguf.architectures import Architecture, Change

_BLOCK = re.compile(r"blk\.(0|[1-9]\d{0,4})\.([a-z0-9_]+)\.(weight|bias)")
_IN_BLOCK = re.compile(r"blk\.(0|[1-9]\d{0,4})\.([a-z0-9_.]+)")
_LAYER = re.compile(r"(0|[1-9]\d{0,4})\.([a-zA-Z0-9_.{}]+)\.(weight|bias)")


@dataclass(frozen=True)
class Named:
    """A tensor's name in the other world and what lies between: its rows in pairs (``paired_rows``), 1 added, what is
    published [inputs, outputs] turned (numbers only: codes lie by outputs in both), rows of query, key and value one
    after the other instead of in groups, one row alone; of what carries a state the decays instead of the logarithms of
    their amounts, vectors that were given a second dimension, taps of channels without the middle one; a matrix of
    every head in three dimensions, ``turned heads`` [inputs, outputs] each, whose codes are numbers here. The name of a
    tensor that holds all experts' has ``{expert}`` in it."""

    name: str
    change: Change


def to_hugging_face(architecture: Architecture, name: str) -> Named | None:
    """What a tensor of a GGUF file is called in a Hugging Face directory; None for a name nobody here knows."""
    stem, _, kind = name.rpartition(".")
    if stem in architecture.outer and kind in ("weight", "bias"):
        return Named(f"{architecture.outer[stem]}.{kind}", _change(architecture, stem, kind))
    match = _IN_BLOCK.fullmatch(name)
    if match and match[2] in architecture.parameters:
        own, change = architecture.parameters[match[2]]
        return Named(f"{architecture.layers}{int(match[1])}.{own}", change)
    match = _BLOCK.fullmatch(name)
    inner = architecture.block.get(match[2]) if match else None
    if match is None or inner is None:
        return None
    return Named(f"{architecture.layers}{int(match[1])}.{inner}.{match[3]}", _change(architecture, match[2], match[3]))


def to_ggml(architecture: Architecture, name: str) -> Named | None:
    """The inverse of ``to_hugging_face``."""
    stem, _, kind = name.rpartition(".")
    for theirs, ours in architecture.outer.items():
        if stem == ours and kind in ("weight", "bias"):
            return Named(f"{theirs}.{kind}", _change(architecture, theirs, kind))
    match = _LAYER.fullmatch(name.removeprefix(architecture.layers)) if name.startswith(architecture.layers) else None
    inner = next((key for key, value in architecture.block.items() if match and value == match[2]), None)
    if match is None or inner is None:
        return None
    return Named(f"blk.{int(match[1])}.{inner}.{match[3]}", _change(architecture, inner, match[3]))


def _change(architecture: Architecture, stem: str, kind: str) -> Change:
    if stem == "ffn_gate_inp_shexp":
        return "one row"
    if architecture.paired_rows and stem in ("attn_q", "attn_k"):
        return "paired rows"
    if architecture.norms_plus_one and stem.endswith("_norm") and kind == "weight":
        return "plus one"
    if kind == "weight" and stem in architecture.turned:
        return "turned"
    return "in groups" if architecture.in_groups and stem == "attn_qkv" else ""


def grouped_rows(rows: int, heads: int, groups: int) -> npt.NDArray[np.intp]:
    """Indices [rows] that gather queries, keys and values, one after the other, into [groups, heads / groups + 2].

    ``rows`` must be ``heads + 2 * groups`` times a size.
    """
    size = rows // (heads + 2 * groups)
    kinds = np.split(np.arange(rows), (heads * size, (heads + groups) * size))
    return np.concatenate([part.reshape(groups, -1) for part in kinds], axis=1).reshape(rows)


def halved_rows(rows: int, heads: int) -> npt.NDArray[np.intp]:
    """Indices [rows] that gather paired rows into halves: row h*d + j*d/2 + i comes from h*d + 2*i + j.

    ``rows`` must be ``heads`` times an even size.
    """
    return np.arange(rows).reshape(heads, rows // heads // 2, 2).swapaxes(1, 2).reshape(rows)


def paired_rows(rows: int, heads: int) -> npt.NDArray[np.intp]:
    """The inverse of ``halved_rows``: gathers halves into pairs."""
    return np.arange(rows).reshape(heads, 2, rows // heads // 2).swapaxes(1, 2).reshape(rows)
