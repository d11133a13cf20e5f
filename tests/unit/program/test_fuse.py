# SPDX-License-Identifier: Apache-2.0
"""fuse: what becomes one op, that nothing is lost by it, and that a fused op must be what its expansion says."""

from collections import Counter
from dataclasses import replace

import pytest
from small_programs import CONFIGS, W4_G128, W8A8, program

from linnet.errors import ConfigError
from linnet.program import attributes as a
from linnet.program.check import check
from linnet.program.choose_numerics import choose_numerics
from linnet.program.fuse import fuse, unfuse
from linnet.program.fused import check_fused
from linnet.program.plan_buffers import plan_buffers
from linnet.program.program import Op, Program
from linnet.program.serialise import digest, from_json, to_json
from linnet.program.signatures import ProgramError
from linnet.program.traverse import declarations

BOUNDS = {"tokens": 64, "sequences": 4, "sequences_plus_one": 5, "blocks": 8, "outputs": 4}
STORAGES = {"bf16": "bf16", "int4": W4_G128, "w8a8": W8A8}


def numbered(name: str = "gated", storage: str = "int4", policy: str = "fast") -> Program:
    return choose_numerics(program(name, STORAGES[storage]), policy)  # type: ignore[arg-type]


def block_of(whole: Program, layer: int = 0) -> list[Op]:
    segment = next(segment for segment in whole.segments if segment.name == f"layers.{layer}")
    return list(whole.ops[segment.start : segment.stop])


def test_a_llama_block_has_ten_ops_instead_of_twenty() -> None:
    """The number of times a step synchronises per layer: at most one per op."""
    built = numbered()
    assert len(block_of(built)) == 20
    assert [(op.kind, op.name) for op in block_of(fuse(built))] == [
        ("row_chain", "layers.0.attention.norm+norm.int8_g128"),
        ("linears", "layers.0.attention.query+key+value"),
        ("row_chain", "layers.0.attention.query_rope+key_rope+kv_write"),
        ("attention", "layers.0.attention.context"),
        ("quantise", "layers.0.attention.context.int8_g128"),
        ("linear", "layers.0.attention.output"),
        ("row_chain", "layers.0.attention.residual+mlp.norm+mlp.norm.int8_g128"),
        ("gated_linears", "layers.0.mlp.gate+up+activation+activation.int8_g128"),
        ("linear", "layers.0.mlp.down"),
        ("add", "layers.0.mlp.residual"),
    ]


@pytest.mark.parametrize("policy", ["exact", "fast"])
@pytest.mark.parametrize("storage", sorted(STORAGES))
@pytest.mark.parametrize("name", sorted(CONFIGS))
def test_fusing_loses_nothing(name: str, storage: str, policy: str) -> None:
    built = numbered(name, storage, policy)
    fused = fuse(built)
    check(fused)
    assert len(fused.ops) < len(built.ops)
    assert unfuse(fused) == built
    assert from_json(to_json(fused)) == fused
    assert digest(fused) != digest(built)


def test_only_what_somebody_else_reads_gets_a_place() -> None:
    built = numbered()
    fused = fuse(built)
    inside = {f"layers.0.{name}" for name in ("attention.norm", "attention.key_rope", "mlp.norm", "mlp.gate", "mlp.up")}
    places = plan_buffers(fused, BOUNDS)
    assert not inside & places.offsets.keys()
    assert "layers.0.attention.residual" in places.offsets  # the second addition reads it
    assert inside <= plan_buffers(built, BOUNDS).offsets.keys()
    assert places.arena_bytes <= plan_buffers(built, BOUNDS).arena_bytes


def test_kept_values_are_outputs_of_the_fused_op() -> None:
    built = numbered()
    keep = ("layers.0.attention.norm", "layers.1.attention.key_rope")
    fused = fuse(built, keep)
    check(fused)
    assert set(keep) <= {name for op in fused.ops for name in op.outputs}
    assert [op.name for op in fused.ops] == [op.name for op in fuse(built).ops]
    assert set(keep) <= plan_buffers(fused, BOUNDS, keep).offsets.keys()
    assert unfuse(fused) == built


def test_a_kept_activation_leaves_the_projections_apart_from_it() -> None:
    """A gated op writes one value; whoever wants to see another gets the ops around it."""
    built = numbered()
    for kept in ("layers.0.mlp.gate", "layers.0.mlp.activation"):
        fused = fuse(built, (kept,))
        check(fused)
        assert [op.name for op in block_of(fused)][7:9] == [
            "layers.0.mlp.gate+up",
            "layers.0.mlp.activation+activation.int8_g128",
        ]
        assert kept in {name for op in fused.ops for name in op.outputs}
        assert unfuse(fused) == built
        assert "layers.1.mlp.gate+up+activation+activation.int8_g128" in {op.name for op in fused.ops}


def test_an_activation_that_is_rounded_per_row_is_not_rounded_where_it_is_made() -> None:
    """A scale for the whole row needs the whole row; without rounding, or with bf16, nothing does."""
    kinds = {
        storage: [op.kind for op in block_of(fuse(numbered(storage=storage)))][-3:] for storage in ("w8a8", "bf16")
    }
    assert kinds["w8a8"] == ["row_chain", "linear", "add"]
    assert kinds["bf16"] == ["gated_linears", "linear", "add"]
    assert [op.kind for op in block_of(fuse(numbered(policy="exact")))][-3:] == ["gated_linears", "linear", "add"]
    plain = block_of(fuse(numbered("parallel", "bf16")))
    assert [len(op.expansion) for op in plain if op.kind == "gated_linears"] == [3]  # up, activation, cast


def test_segments_stay_apart() -> None:
    built = numbered("capped")
    fused = fuse(built)
    for before, after in zip(built.segments, fused.segments, strict=True):
        assert (before.inputs, before.outputs) == (after.inputs, after.outputs)
    assert block_of(fused)[-1].name == "layers.0.mlp.post_norm+residual"


def test_a_chain_may_be_refused() -> None:
    """A backend that has no kernel for one fused op gets what it stands for, and the other fused ops as they are."""
    built = numbered()
    fused = fuse(built)
    partly = unfuse(fused, lambda op: op.kind == "linears")
    check(partly)
    kinds = Counter(op.kind for op in partly.ops)
    assert kinds["linears"] == 0
    assert kinds["row_chain"] == Counter(op.kind for op in fused.ops)["row_chain"]


def test_fusing_comes_once_and_last() -> None:
    fused = fuse(numbered())
    with pytest.raises(ConfigError, match="already has fused ops"):
        fuse(fused)
    with pytest.raises(ConfigError, match="fused"):
        choose_numerics(fused, "fast")


def test_a_fused_op_is_what_its_expansion_says() -> None:
    fused = fuse(numbered())
    chain = next(op for op in fused.ops if op.kind == "row_chain")
    linears = next(op for op in fused.ops if op.kind == "linears")
    gated = next(op for op in fused.ops if op.kind == "gated_linears")
    named = {"row_chain": chain, "linears": linears, "gated_linears": gated}
    for kind, change, message in (
        ("row_chain", {"expansion": ()}, "fuses 0 ops"),
        ("row_chain", {"expansion": chain.expansion[:1]}, "fuses 1 ops"),
        ("row_chain", {"inputs": ("token_ids",)}, "reads"),
        ("row_chain", {"outputs": (*chain.outputs, "logits")}, "writes"),
        ("row_chain", {"weights": ()}, "its weights"),
        ("row_chain", {"states": ("layers.0.kv",)}, "its states"),
        ("row_chain", {"expansion": (*chain.expansion, linears.expansion[0])}, ""),
        ("linears", {"outputs": linears.outputs[:2]}, "writes"),
        ("linears", {"expansion": linears.expansion[:2]}, ""),
        ("linears", {"expansion": (linears, linears)}, "has its own"),
        ("gated_linears", {"outputs": gated.expansion[0].outputs}, "one value"),
        ("gated_linears", {"expansion": gated.expansion[:2], "outputs": gated.expansion[1].outputs}, "one value"),
        ("gated_linears", {"expansion": gated.expansion[1:]}, ""),
    ):
        liar = replace(named[kind], **change)  # type: ignore[arg-type]
        with pytest.raises(ProgramError, match=message):
            check_fused(liar, declarations(fused))
        with pytest.raises(ProgramError):
            check(replace(fused, ops=tuple(liar if op.name == liar.name else op for op in fused.ops)))


def test_an_inner_value_stays_inside() -> None:
    fused = fuse(numbered())
    ops = list(fused.ops)
    last = next(i for i, op in enumerate(ops) if op.name == "layers.0.mlp.residual")
    ops[last] = replace(ops[last], inputs=("layers.0.attention.norm", ops[last].inputs[1]))
    with pytest.raises(ProgramError, match=r"reads layers\.0\.attention\.norm, which nothing before it writes"):
        check(replace(fused, ops=tuple(ops)))


def test_a_gather_does_not_read_its_own_chain() -> None:
    """It reads other rows than its own, which the chain may not have written yet."""
    built = numbered()
    start = next(segment.start for segment in built.segments if segment.name == "head")
    head = built.ops[start : start + 2]
    assert [op.kind for op in head] == ["gather", "norm"]
    swapped = (
        Op("scale", "head.scaled", ("head.rows",), ("head.scaled",), a.Scale(2.0)),
        Op("gather", "head.again", ("head.scaled", "output_rows"), ("head.again",), a.Gather()),
    )
    chain = Op(
        "row_chain",
        "bad",
        ("head.rows", "output_rows"),
        ("head.again",),
        a.RowChain(),
        expansion=swapped,
    )
    values = tuple(replace(built.values[0], name=name, shape=("outputs", 8)) for name in ("head.scaled", "head.again"))
    ops = (*built.ops[: start + 1], chain, *built.ops[start + 1 :])
    with pytest.raises(ProgramError, match=r"head\.again reads other rows"):
        check(replace(built, ops=ops, values=(*built.values, *values)))
