# SPDX-License-Identifier: Apache-2.0
"""gather_early: which ops are done for output rows alone, what taps hold back, and that the program stays a program."""

from dataclasses import replace

import pytest
from small_programs import CONFIGS, W4_G128, program

from linnet.program.check import check
from linnet.program.choose_numerics import choose_numerics
from linnet.program.fuse import fuse, unfuse
from linnet.program.gather_early import gather_early
from linnet.program.program import Program
from linnet.program.serialise import from_json, to_json
from linnet.program.traverse import declarations


def numbered(name: str = "gated", policy: str = "fast") -> Program:
    return choose_numerics(program(name, W4_G128), policy)  # type: ignore[arg-type]


def late(built: Program) -> list[str]:
    """Ops done for output rows alone, in order."""
    declared = declarations(built)
    return [op.name for op in built.ops if op.outputs and declared[op.outputs[0]].shape[0] == "outputs"]


def test_what_follows_the_last_attention_is_done_for_output_rows() -> None:
    assert late(gather_early(numbered())) == [
        "layers.1.attention.context.rows",
        "layers.1.attention.context.int8_g128",
        "layers.1.attention.output",
        "layers.0.mlp.residual.rows",
        "layers.1.attention.residual",
        "layers.1.mlp.norm",
        "layers.1.mlp.norm.int8_g128",
        "layers.1.mlp.gate",
        "layers.1.mlp.up",
        "layers.1.mlp.activation",
        "layers.1.mlp.activation.int8_g128",
        "layers.1.mlp.down",
        "layers.1.mlp.residual",
        "head.norm",
        "head.norm.bf16",
        "logits",
    ]


@pytest.mark.parametrize("policy", ["exact", "fast"])
@pytest.mark.parametrize("name", sorted(CONFIGS))
def test_every_family_stays_a_program(name: str, policy: str) -> None:
    built = numbered(name, policy)
    early = gather_early(built)
    check(early)
    check(fuse(early))
    assert unfuse(fuse(early)) == early == from_json(to_json(early))
    assert early.weights == built.weights
    assert early.states == built.states
    assert not {"head.rows"} & {op.name for op in early.ops}
    # Nothing of an earlier block, no key and no value may be missing for any token.
    names = {op.name for op in early.ops if op.name not in late(early)}
    assert {op.name for op in built.ops if op.name.startswith("layers.0.")} <= names
    assert {"layers.1.attention.key", "layers.1.attention.value", "layers.1.attention.kv_write"} <= names


def test_a_kept_value_keeps_its_rows_and_what_it_is_made_of() -> None:
    built = numbered()
    early = gather_early(built, ["layers.1.mlp.up"])
    check(early)
    tokens = {op.name for op in early.ops} - set(late(early))
    assert {"layers.1.mlp.up", "layers.1.mlp.norm", "layers.1.attention.output"} <= tokens
    # gate reads the same rounded value as up, whose rows cannot be gathered, so it stays beside it.
    assert {"layers.1.mlp.gate", "layers.1.mlp.norm.int8_g128"} <= tokens
    assert {"layers.1.mlp.activation", "layers.1.mlp.down"} <= set(late(early))
    assert gather_early(built, ["head.rows"]) == built
    assert gather_early(built, ["layers.1.mlp.residual"]) == built


def test_nothing_to_move_changes_nothing() -> None:
    built = numbered()
    early = gather_early(built)
    assert gather_early(early) == early, "two gathers: it has run before"
    ungathered = replace(built, ops=tuple(op for op in built.ops if op.kind != "gather"))
    assert gather_early(ungathered) == ungathered
