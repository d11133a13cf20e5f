# SPDX-License-Identifier: Apache-2.0
"""Scans whose channels share steps and decays by heads, and B and C by groups: the kernels against the reference, in
whole prompts and in chunks, whose bits are the same."""

import random

import numpy as np
import pytest

pytest.importorskip("torch", reason="the reference needs PyTorch")

import stepping
from test_families import LIMITS, backend_named

from linnet.models.build import build_program
from linnet.models.parts import consecutive
from linnet.models.spec import ArchSpec, LayerSpec, NormSpec, Projection, StateSpaceSpec
from linnet.program.check import check
from linnet.program.program import Program, WeightRef

BLOCK, HIDDEN, WIDTH, STATES, HEAD = "layers.{layer}", 40, 72, 5, 12


def spec_of(groups: int, gated: bool) -> ArchSpec:
    inner, heads = groups * STATES, WIDTH // HEAD
    fused = Projection(f"{BLOCK}.in_proj", 2 * WIDTH + 2 * inner + heads, HIDDEN)
    gate, x, inward, outward, steps = consecutive(fused, WIDTH, WIDTH, inner, inner, heads)
    mixer = StateSpaceSpec(
        norm=NormSpec(f"{BLOCK}.norm", "rms", 1e-5), module_name=f"{BLOCK}.mixer", gate=gate, x=x, steps=steps,
        inward=inward, outward=outward, output=Projection(f"{BLOCK}.out_proj", HIDDEN, WIDTH), taps=4, states=STATES,
        head_size=HEAD, groups=groups, step_bias=True, shared_decay=True,
        gated_norm=NormSpec(f"{BLOCK}.gated", "rms", 1e-5) if gated else None,
    )  # fmt: skip
    return ArchSpec(
        family="none", prefix="", vocabulary_size=61, hidden_size=HIDDEN, max_positions=64, longest_positions=64,
        layers=(LayerSpec(mixer, None),) * 2, embedding="embed", final_norm=NormSpec("norm", "rms", 1e-5), head="head",
        tied_head=True,
    )  # fmt: skip


class Drawn:
    """A source of random weights, the same for every backend."""

    def __init__(self, program: Program) -> None:
        generator = np.random.default_rng(3)
        self.program = program
        self._weights = {
            weight.ref: generator.normal(0, 0.3, weight.shape).astype(np.float32) for weight in program.weights
        }

    def weight(self, ref: WeightRef) -> np.ndarray:
        return self._weights[ref]


@pytest.mark.parametrize(("groups", "gated"), [(1, True), (2, False), (3, False)])
def test_heads_and_groups(groups: int, gated: bool) -> None:
    program = build_program(spec_of(groups, gated), lambda _: "fp32")
    check(program)
    source = Drawn(program)
    generator = random.Random(3)
    prompts = [[generator.randrange(61) for _ in range(length)] for length in (29, 3, 17, 1)]
    expected = stepping.run(backend_named("reference").prepare(source, "exact", LIMITS), prompts, None)
    for name in ("cpu", "portable"):
        executable = backend_named(name).prepare(source, "exact", LIMITS)
        whole, cut = stepping.run(executable, prompts, None), stepping.run(executable, prompts, (2, 1, 7, 1))
        largest = max(float(np.abs(logits).max()) for logits in expected)
        assert largest > 0.1
        for one, two, three in zip(expected, whole, cut, strict=True):
            assert np.abs(one - two).max() <= 1e-4 * largest
            assert np.array_equal(two, three)
