# SPDX-License-Identifier: Apache-2.0
"""The arena over real and random programs: nothing alive overlaps, taps survive, everything is aligned."""

import random
from typing import Any

import pytest
from small_programs import CONFIGS, W4_G128, program

from linnet.errors import ConfigError
from linnet.program.attributes import Add, Scale
from linnet.program.choose_numerics import choose_numerics
from linnet.program.plan_buffers import ALIGNMENT_BYTES, BufferPlan, align, plan_buffers, value_bytes
from linnet.program.program import Op, Program, Value
from linnet.schemes.scheme import Scheme

BOUNDS = {"tokens": 7, "outputs": 3, "sequences": 2, "sequences_plus_one": 3, "blocks": 4}


def assert_sound(program: Program, plan: BufferPlan, keep: set[str]) -> None:
    """Replays the program writing each value's name over its bytes: every read must find its own name."""
    memory: dict[int, str] = {}
    given = {value.name for value in program.inputs}

    def lines(name: str) -> range:
        start, size = plan.offsets[name], max(plan.sizes[name], 1)
        assert start % ALIGNMENT_BYTES == 0
        assert start + size <= plan.arena_bytes
        return range(start // ALIGNMENT_BYTES, -(-(start + size) // ALIGNMENT_BYTES))

    for op in program.ops:
        before = [name for name in op.inputs if name not in given]
        for name in op.outputs:
            memory.update(dict.fromkeys(lines(name), name))
        for name in (*before, *op.outputs):
            assert all(memory.get(line) == name for line in lines(name)), f"{op.name}: {name} is overwritten"
    for name in (*keep, *program.outputs):
        assert all(memory.get(line) == name for line in lines(name)), f"{name} does not survive"


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("policy", ["exact", "fast"])
def test_built_programs(name: str, policy: Any) -> None:
    chosen = choose_numerics(program(name, W4_G128), policy)
    plan = plan_buffers(chosen, BOUNDS)
    assert plan.offsets.keys() == {value.name for value in chosen.values}
    assert_sound(chosen, plan, set())
    assert plan == plan_buffers(chosen, BOUNDS)


def test_the_arena_does_not_grow_with_layers() -> None:
    from published_configs import LLAMA_2_7B

    from linnet.models import arch_spec
    from linnet.models.build import build_program

    sizes = [
        plan_buffers(
            build_program(arch_spec(LLAMA_2_7B | {"num_hidden_layers": layers}), lambda name: "bf16"), BOUNDS
        ).arena_bytes
        for layers in (1, 2, 32)
    ]
    assert sizes[0] == sizes[1] == sizes[2]


def test_kept_values_survive() -> None:
    built = program()
    keep = {f"layers.{layer}.{name}" for layer in range(2) for name in ("attention.norm", "mlp.activation")}
    plan = plan_buffers(built, BOUNDS, keep)
    assert_sound(built, plan, keep)
    assert plan.arena_bytes > plan_buffers(built, BOUNDS).arena_bytes
    with pytest.raises(ConfigError, match=r"layers\.9"):
        plan_buffers(built, BOUNDS, ["layers.9.mlp.norm"])


def random_program(generator: random.Random) -> Program:
    """A random acyclic program of adds and scales over values of random widths; widths are not checked here."""
    values = [Value("x", ("tokens", 16), "fp32")]
    ops: list[Op] = []
    for index in range(generator.randrange(1, 40)):
        name = f"v{index}"
        shape = (generator.choice(["tokens", "outputs", 5]), generator.randrange(1, 300))
        values.append(Value(name, shape, generator.choice(["fp32", "bf16", "int32"])))
        sources = [value.name for value in values[:-1]]
        if generator.random() < 0.5:
            ops.append(Op("scale", name, (generator.choice(sources),), (name,), Scale(2.0)))
        else:
            recent = sources[-4:]
            ops.append(Op("add", name, (generator.choice(recent), generator.choice(sources)), (name,), Add()))
    return Program((values[0],), tuple(values[1:]), (), (), tuple(ops), (), (ops[-1].outputs[0],))


@pytest.mark.parametrize("seed", range(200))
def test_random_programs(seed: int) -> None:
    generator = random.Random(seed)
    built = random_program(generator)
    keep = {value.name for value in built.values if generator.random() < 0.15}
    plan = plan_buffers(built, BOUNDS, keep)
    assert_sound(built, plan, keep)
    assert plan.arena_bytes <= sum(align(size) for size in plan.sizes.values())


def test_value_bytes() -> None:
    def size(dtype: Any, width: int = 300) -> int:
        return value_bytes(Value("x", ("tokens", width), dtype), BOUNDS)

    assert size("fp32") == 7 * 300 * 4
    assert size("bf16") == 7 * 300 * 2
    token = Scheme("int8", "token", dynamic=True)
    assert size(token) == 7 * 384 + 2 * align(7 * 4), "rows are padded to 128 codes"
    groups = Scheme("int8", "group", group_size=128, dynamic=True)
    assert size(groups) == 7 * 3 * 128 + 2 * align(7 * 3 * 4), "the last group is padded to a whole one"
    wide = Scheme("int8", "group", group_size=512, dynamic=True)
    assert size(wide) == 7 * 512 + 2 * align(7 * 4), "a group wider than the row is padded like any other"


def test_value_bytes_are_enough_for_the_native_kernels() -> None:
    native = pytest.importorskip("linnet.backends.cpu._native", reason="the native extension is not built")
    for isa in native.available_isas():
        for width in (1, 8, 48, 64, 172, 192, 300, 2048):
            for group in (8, 24, 32, 64, 100, 128, width):
                scheme = Scheme("int8", "group", group_size=group, dynamic=True)
                bound = value_bytes(Value("x", ("tokens", width), scheme), BOUNDS)
                wanted = native.value_bytes(isa, native.ValueType.int8, BOUNDS["tokens"], width, group)
                assert wanted <= bound, (isa, width, group)


def test_a_backend_may_size_quantised_values_itself() -> None:
    chosen = choose_numerics(program("gated", W4_G128), "fast")
    plan = plan_buffers(chosen, BOUNDS, value_bytes=lambda value, bounds: 1000)
    assert set(plan.sizes.values()) == {1000}
    assert_sound(chosen, plan, set())


def test_every_symbol_needs_a_bound() -> None:
    with pytest.raises(ConfigError, match="tokens"):
        plan_buffers(program(), {"outputs": 3})
