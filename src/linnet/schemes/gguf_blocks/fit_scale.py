# SPDX-License-Identifier: Apache-2.0
"""The scale of a group of integer codes that loses least: w = scale * code.

For given codes the best scale is sum(h w q) / sum(h q^2), and it takes (sum h w q)^2 / sum(h q^2) off the error. Codes
come from trial scales that send the greatest weight to the end of the range, a little inside it or a little beyond
(ggml's ``make_qx_quants``, by Kawrakow), towards the negative and towards the positive end.
"""

from typing import Any

import numpy as np
import numpy.typing as npt

from linnet.schemes.gguf_blocks.weighing import clip_nearest, quotient, total, weigh

Array = npt.NDArray[Any]

_STEPS = (0.0, -0.2, 0.2, -0.4, 0.4, -0.6, 0.6, -0.8, 0.8)
"""By how many codes the greatest weight may miss the end of the range."""


def fit_scales(weights: Array, importance: Array | None, smallest: int, largest: int) -> Array:
    """fp32 scales [groups], of either sign, for ``weights`` [elements, groups]; ``importance`` likewise."""
    at = np.argmax(np.abs(weights), axis=0)
    greatest = np.take_along_axis(weights, at[None], axis=0)[0]
    weighed = weigh(weights, importance)
    best = np.zeros(weights.shape[1], np.float32)
    best_gain = np.zeros(weights.shape[1], np.float32)
    ends = (smallest,) if smallest == -largest else (smallest, largest)
    for end in ends:
        for step in _STEPS:
            with np.errstate(divide="ignore", over="ignore"):
                inverse = np.float32(end + step) / greatest
            np.copyto(inverse, 0, where=~np.isfinite(inverse))
            scale, gain = least_squares(weighed, importance, quantise(weights, inverse, smallest, largest))
            better = gain > best_gain
            np.copyto(best, scale, where=better)
            np.copyto(best_gain, gain, where=better)
    return best


def quantise(weights: Array, inverse: Array, smallest: int, largest: int) -> Array:
    """Nearest codes, as fp32 [elements, groups], for 1 / scale [groups]."""
    return clip_nearest(weights * inverse, smallest, largest)


def least_squares(weighed: Array, importance: Array | None, codes: Array) -> tuple[Array, Array]:
    """The best scale [groups] for given codes, and how much of sum(h w^2) it explains; ``weighed`` is h w."""
    cross = total(weighed * codes)
    scale = quotient(cross, total(weigh(codes * codes, importance)))
    return scale, scale * cross
