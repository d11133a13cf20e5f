# SPDX-License-Identifier: Apache-2.0
"""Where adapters are added to a program, and that nothing else of it changes."""

from dataclasses import replace

import pytest
from tiny_llama import write_tiny_llama

from linnet.models import load_model
from linnet.program.adapters import ADAPTERS, adapter_bytes, adapter_sites, add_adapters
from linnet.program.check import check
from linnet.program.choose_numerics import choose_numerics
from linnet.program.fuse import fuse, unfuse
from linnet.program.gather_early import gather_early
from linnet.program.plan_buffers import plan_buffers
from linnet.program.program import Program
from linnet.program.serialise import digest, from_json, to_json
from linnet.program.signatures import ProgramError

BOUNDS = {"tokens": 64, "sequences": 8, "sequences_plus_one": 9, "blocks": 8, "outputs": 8}
LINEARS = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj", "mlp.gate_proj",
           "mlp.up_proj", "mlp.down_proj")  # fmt: skip


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Program:
    return load_model(write_tiny_llama(tmp_path_factory.mktemp("tiny"))).program


def test_every_linear_of_the_layers_is_a_site(program: Program) -> None:
    sites = adapter_sites(program)
    assert {site.module for site in sites} == {f"model.layers.{layer}.{name}" for layer in range(2) for name in LINEARS}
    assert all(site.module_rows == site.outputs for site in sites)
    assert adapter_bytes(sites, 8) == sum(4 * (16 * site.columns + 8 * -(-site.outputs // 16) * 16) for site in sites)


def test_the_program_is_the_same_without_its_additions(program: Program) -> None:
    """Every op is there, in its order, and reads an addition where it read a linear."""
    added = add_adapters(program)
    check(added)
    assert added.inputs == (*program.inputs, ADAPTERS)
    named = {f"{site.output}.adapted": site.output for site in adapter_sites(program)}
    kept = [
        replace(op, inputs=tuple(named.get(name, name) for name in op.inputs))
        for op in added.ops
        if op.kind != "low_rank_add"
    ]
    assert tuple(kept) == program.ops
    assert len(added.ops) == len(program.ops) + len(named)
    assert from_json(to_json(added)) == added
    assert digest(added) != digest(program)


@pytest.mark.parametrize("policy", ["exact", "fast"])
def test_passes_keep_the_contract(program: Program, policy: str) -> None:
    chosen = choose_numerics(add_adapters(program), policy)  # type: ignore[arg-type]
    early = gather_early(chosen)
    fused = fuse(early)
    for each in (chosen, early, fused):
        check(each)
    assert unfuse(fused) == early
    joined = [op for op in fused.ops if op.kind == "low_rank_adds"]
    assert [len(op.expansion) for op in joined] == [3, 2] * 2  # query, key and value; gate and up
    rows = [op for op in early.ops if op.kind == "low_rank_add" and op.inputs[-1] == "output_rows"]
    assert [op.name for op in rows] == [f"layers.1.{name}.adapted" for name in
                                        ("attention.output", "mlp.gate", "mlp.up", "mlp.down")]  # fmt: skip


def test_a_result_is_added_to_in_its_place_unless_somebody_reads_it(program: Program) -> None:
    fused = fuse(gather_early(choose_numerics(add_adapters(program), "exact")))
    plan = plan_buffers(fused, BOUNDS)
    sites = adapter_sites(program)
    assert all(plan.offsets[site.name] == plan.offsets[site.output] for site in sites)
    kept = sites[0].output
    other = plan_buffers(fused, BOUNDS, [kept])
    assert other.offsets[sites[0].name] != other.offsets[kept]
    without = plan_buffers(fuse(gather_early(choose_numerics(program, "exact"))), BOUNDS)
    assert plan.arena_bytes <= 2 * without.arena_bytes


def test_what_is_no_addition_is_refused(program: Program) -> None:
    added = add_adapters(program)
    op = next(op for op in added.ops if op.kind == "low_rank_add")
    for inputs in ((op.inputs[0], op.inputs[1]), (op.inputs[0], op.inputs[1], "positions", "output_rows")):
        ops = tuple(replace(one, inputs=inputs) if one is op else one for one in added.ops)
        with pytest.raises(ProgramError):
            check(replace(added, ops=ops))
