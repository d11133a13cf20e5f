# SPDX-License-Identifier: Apache-2.0
"""Every rule of the contract has a program that breaks it, and check names the place."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from small_programs import CONFIGS, W4_G128, W8A8, program

from linnet.program.attributes import Add, Attention, Norm, Rope, Scale
from linnet.program.check import check
from linnet.program.choose_numerics import choose_numerics
from linnet.program.program import Op, Program, Value, Weight, WeightRef
from linnet.program.signatures import ProgramError
from linnet.schemes.scheme import Scheme


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("linears", ["fp32", "bf16", W4_G128, W8A8], ids=["fp32", "bf16", "W4", "W8A8"])
def test_built_programs_and_passes_keep_the_contract(name: str, linears: Any) -> None:
    built = program(name, linears)
    check(built)
    check(choose_numerics(built, "exact"))
    check(choose_numerics(built, "fast"))


def change_op(name: str, /, **changes: Any) -> Callable[[Program], Program]:
    def edit(program: Program) -> Program:
        assert any(op.name == name for op in program.ops)
        return replace(program, ops=tuple(replace(op, **changes) if op.name == name else op for op in program.ops))

    return edit


def change_attributes(name: str, /, **changes: Any) -> Callable[[Program], Program]:
    def edit(program: Program) -> Program:
        op = next(op for op in program.ops if op.name == name)
        return change_op(name, attributes=replace(op.attributes, **changes))(program)  # type: ignore[type-var]

    return edit


def change_value(name: str, /, **changes: Any) -> Callable[[Program], Program]:
    return lambda program: replace(
        program, values=tuple(replace(v, **changes) if v.name == name else v for v in program.values)
    )


def change_weight(name: str, /, **changes: Any) -> Callable[[Program], Program]:
    return lambda program: replace(
        program, weights=tuple(replace(w, **changes) if w.name == name else w for w in program.weights)
    )


def change_segment(index: int, /, **changes: Any) -> Callable[[Program], Program]:
    def edit(program: Program) -> Program:
        segments = list(program.segments)
        segments[index] = replace(segments[index], **changes)
        return replace(program, segments=tuple(segments))

    return edit


def swap_first_two(program: Program) -> Program:
    return replace(program, ops=(program.ops[1], program.ops[0], *program.ops[2:]))


def write_twice(program: Program) -> Program:
    extra = Op("add", "again", ("embed", "embed"), ("embed",), Add())
    return replace(program, ops=(program.ops[0], extra, *program.ops[1:]))


def swap(one: str, other: str) -> Callable[[Program], Program]:
    def edit(program: Program) -> Program:
        found = {op.name: op for op in program.ops}
        swapped = {one: found[other], other: found[one]}
        return replace(program, ops=tuple(swapped.get(op.name, op) for op in program.ops))

    return edit


def idle_state(program: Program) -> Program:
    return replace(program, states=(*program.states, replace(program.states[0], name="idle")))


def wide(program: Program) -> Program:
    return replace(program, values=(*program.values, Value("idle", ("tokens", 3), "fp32")))


def idle_weight(program: Program) -> Program:
    return replace(program, weights=(*program.weights, Weight("idle", WeightRef("idle.weight"), (3,), "fp32")))


QUERY = "layers.0.attention.query"
CONTEXT = "layers.0.attention.context"
BREAKS: tuple[tuple[str, Callable[[Program], Program], str], ...] = (
    ("version", lambda p: replace(p, version=3), "version"),
    ("read before write", swap_first_two, "nothing before it writes"),
    ("write twice", write_twice, "already written"),
    ("unknown input", change_op("layers.0.mlp.up", inputs=("nowhere",)), "nowhere"),
    ("undeclared output", change_op(QUERY, outputs=("nowhere",)), "not declared"),
    ("unknown weight", change_op(QUERY, weights=("nowhere",)), "weight nowhere"),
    ("unknown state", change_op(CONTEXT, states=("nowhere",)), "state nowhere"),
    ("two ops of one name", change_op("layers.0.attention.key", name=QUERY), "twice"),
    ("value nobody writes", wide, "never written: idle"),
    ("weight nobody reads", idle_weight, "no op reads: idle"),
    ("value declared twice", lambda p: replace(p, values=(*p.values, p.values[0])), "declared twice"),
    ("output nobody writes", lambda p: replace(p, outputs=("positions",)), "positions"),
    ("unknown symbol", change_value("embed", shape=("rows", 4096)), "rows"),
    ("zero width", change_value("embed", shape=("tokens", 0)), "embed"),
    ("static activation", change_value("embed", dtype=Scheme("int8", "token")), "static.*per tensor"),
    ("scale of a step", change_value("embed", dtype=Scheme("int8", "tensor", dynamic=True)), "per token or group"),
    ("wrong output width", change_value(QUERY, shape=("tokens", 4095)), QUERY),
    ("wrong output rows", change_value(QUERY, shape=("outputs", 4096)), QUERY),
    ("wrong output type", change_value(QUERY, dtype="bf16"), "bf16"),
    ("wrong weight shape", change_weight(f"{QUERY}.weight", shape=(4096, 4095)), f"{QUERY}.weight"),
    ("rows that do not add up", change_weight(f"{QUERY}.weight", ref=WeightRef("x", ((0, 7),))), "7 rows"),
    ("empty row range", change_weight(f"{QUERY}.weight", ref=WeightRef("x", ((4, 4),))), "row ranges"),
    ("too many inputs", change_op("layers.0.mlp.residual", inputs=("embed",) * 3), "3 inputs"),
    ("a weight too many", change_op("layers.0.mlp.residual", weights=(f"{QUERY}.weight",)), "1 weights"),
    ("positions of another type", change_op("layers.0.attention.query_rope", inputs=(QUERY, "embed")), "embed"),
    ("attention before its write", swap(CONTEXT, "layers.0.attention.kv_write"), "reads state layers.0.kv"),
    ("state nobody writes", idle_state, "no op writes: idle"),
    ("norm epsilon", change_attributes("layers.0.mlp.norm", epsilon=0.0), "epsilon 0.0"),
    ("attention softcap", change_attributes(CONTEXT, softcap=0.0), "softcap 0.0"),
    ("norm size", change_attributes("layers.0.mlp.norm", size=4095), "4095"),
    ("heads", change_attributes(CONTEXT, heads=31), CONTEXT),
    ("KV heads", change_attributes(CONTEXT, kv_heads=16), "state layers.0.kv"),
    ("window", change_attributes(CONTEXT, window=0), "window"),
    ("slopes", change_attributes(CONTEXT, alibi_slopes=(1.0,)), "slope"),
    ("frequencies", change_attributes("layers.0.attention.query_rope", rotary_size=64), "64 frequencies|frequencies"),
    ("segment gap", change_segment(1, start=2), "layers.0"),
    ("segment end", lambda p: replace(p, segments=p.segments[:-1]), "segments end"),
    ("boundary in", change_segment(1, inputs=()), "cross in"),
    ("boundary out", change_segment(1, outputs=("embed",)), "cross out"),
    ("segment kinds", change_segment(1, kind="head"), "one embed"),
)


@pytest.mark.parametrize(("edit", "named"), [case[1:] for case in BREAKS], ids=[case[0] for case in BREAKS])
def test_a_broken_rule_is_named(edit: Callable[[Program], Program], named: str) -> None:
    with pytest.raises(ProgramError, match=named):
        check(edit(program()))


def test_a_logit_cap_is_positive() -> None:
    with pytest.raises(ProgramError, match=r"limit 0\.0"):
        check(change_attributes("logits", limit=0.0)(program("capped")))


@pytest.mark.parametrize(("size", "named"), [(0, "size 0"), (1, "size 1"), (24, "size 24"), (512, "runs of 512")])
def test_runs_of_hadamard_are_powers_of_two_that_tile_the_width(size: int, named: str) -> None:
    down = "layers.0.mlp.down"
    rotated = program(rotations={"model.layers.0.mlp.down_proj": 256})  # of 11,008
    check(rotated)
    with pytest.raises(ProgramError, match=named):
        check(change_attributes(f"{down}.rotated", size=size)(rotated))


def test_joined_heads_are_as_wide_as_their_parts() -> None:
    made = program("latent")
    for changes, named in (({"heads": 15}, "not of 15 heads"), ({"shared": False}, "expected")):
        with pytest.raises(ProgramError, match=named):
            check(change_attributes("layers.0.attention.key_joined", **changes)(made))


@pytest.mark.parametrize(
    "attributes",
    [
        Norm("batch", 4096, 1e-5),  # type: ignore[arg-type]
        Norm("rms", 4096.0, 1e-5),  # type: ignore[arg-type]
        Norm("rms", True, 1e-5),
        Norm("rms", 4096, float("nan")),
        Norm("rms", 4096, "1e-5"),  # type: ignore[arg-type]
    ],
)
def test_attributes_hold_their_declared_types(attributes: Norm) -> None:
    with pytest.raises(ProgramError, match="Norm"):
        check(change_op("layers.0.mlp.norm", attributes=attributes)(program()))


def test_attributes_of_another_kind_cannot_be_attached() -> None:
    with pytest.raises(ValueError, match="do not fit"):
        Op("add", "x", ("a", "b"), ("x",), Scale(2.0))
    with pytest.raises(ValueError, match="unknown op kind"):
        Op("convolve", "x", ("a",), ("x",), Scale(2.0))


def test_lists_are_not_tuples() -> None:
    rope = Rope(128, 128, "half", [1.0] * 64)  # type: ignore[arg-type]
    with pytest.raises(ProgramError, match="inverse_frequencies"):
        check(change_op("layers.0.attention.query_rope", attributes=rope)(program()))
    with pytest.raises(ProgramError, match="heads"):
        check(change_op(CONTEXT, attributes=Attention("32", 32, 128, 0.1))(program()))  # type: ignore[arg-type]
