# SPDX-License-Identifier: Apache-2.0
"""The law of fuse and wanted_rows: the same bits before and after, on every tier of the cpu backend and on the
reference, taps included; kernels stay named per weight; the numerics id does not change."""

import numpy as np
import pytest

pytest.importorskip("linnet.backends.cpu._native", reason="the native extension is not built")

from linnet.backends.cpu import backend as cpu_backend
from linnet.backends.cpu.backend import ISAS, CpuBackend, CpuExecutable
from linnet.backends.interface import Batch, Limits
from linnet.errors import UnsupportedError
from linnet.program.choose_numerics import choose_numerics
from linnet.program.fuse import fuse
from linnet.program.wanted_rows import wanted_rows

BLOCKS, BLOCK_SIZE = 8, 16
LIMITS = Limits(96, 3, 96, BLOCK_SIZE, BLOCKS)
FAMILIES = ("llama", "window", "qwen3", "gemma2", "neox", "bloom", "latent")
STORAGES = ("bf16", "fp16", "W4A16-g32", "W8A8", "W3A16", "NF4-g32")
TAPS = (
    "layers.0.attention.norm",
    "layers.1.attention.residual",
    "layers.1.mlp.norm",
    "layers.1.mlp.activation",
    "layers.1.attention.key",
)


def backend(isa: str, threads: int = 3) -> CpuBackend:
    try:
        return CpuBackend(threads=threads, isa=isa)
    except UnsupportedError as error:
        pytest.skip(str(error))


def steps() -> list[Batch]:
    """Three sequences: prefill of unequal lengths, a chunk of which no logits are wanted, a chunk beside decoding, then
    decoding alone."""
    random = np.random.default_rng(3)
    done, batches = [0, 0, 0], []
    for counts, every in (((40, 7, 1), 2), ((3, 9, 5), 0), ((1, 33, 1), 2), ((1, 1, 1), 1)):
        positions = [np.arange(start, start + count) for start, count in zip(done, counts, strict=True)]
        done = [start + count for start, count in zip(done, counts, strict=True)]
        starts = np.cumsum([0, *counts])
        batches.append(
            Batch(
                random.integers(0, 101, starts[-1]).astype(np.int32),
                np.concatenate(positions).astype(np.int32),
                np.concatenate([at + s * BLOCKS * BLOCK_SIZE for s, at in enumerate(positions)]).astype(np.int32),
                starts.astype(np.int32),
                np.array(done, np.int32),
                np.arange(3 * BLOCKS, dtype=np.int32).reshape(3, BLOCKS),
                np.arange(0, starts[-1] if every else 0, every or 1, dtype=np.int32),
            )
        )
    return batches


def bits(model, names: tuple[str, ...] = ()) -> list[np.ndarray]:
    """Logits and taps of every step, as integers."""
    states, found = model.allocate_states(3 * BLOCKS), []
    for batch in steps():
        model.execute(batch, states)
        found += [model.logits(), *(model.tap(name) for name in names)]
    return [array.view(np.int32) for array in found]


def prepared(pool: CpuBackend, source, policy: str, keep: tuple[str, ...] = ()) -> tuple[CpuExecutable, CpuExecutable]:
    """The executable as it is, and one that executes the program before it was fused."""
    fused = pool.prepare(source, policy, LIMITS, keep)
    with pytest.MonkeyPatch.context() as patch:
        for name in ("fuse", "wanted_rows"):
            patch.setattr(cpu_backend, name, lambda program, keep: program)
        plain = pool.prepare(source, policy, LIMITS, keep)
    assert len(fused.program.ops) < len(plain.program.ops)
    return fused, plain


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("family", FAMILIES)
def test_fused_and_plain_programs_give_the_same_bits(random_model, family, isa):
    pool = backend(isa)
    for policy in ("exact", "fast"):
        for seed, storage in enumerate(STORAGES):
            fused, plain = prepared(pool, random_model(family, storage, seed), policy)
            for one, other in zip(bits(fused), bits(plain), strict=True):
                assert np.array_equal(one, other), f"{family}, {storage}, {policy}"


@pytest.mark.parametrize("isa", ISAS)
def test_rotations_change_no_bits_when_they_are_fused(random_model, isa):
    pool = backend(isa)
    for family, storage in (("llama", "W4A16-g32"), ("qwen3", "W4A4-g32-ag32"), ("bloom", "W8A8")):
        fused, plain = prepared(pool, random_model(family, storage, 3, rotated=True), "fast")
        chains = [op for op in fused.program.ops if op.kind == "row_chain"]
        assert any(inner.kind == "hadamard" for op in chains for inner in op.expansion)
        for one, other in zip(bits(fused), bits(plain), strict=True):
            assert np.array_equal(one, other), f"{family}, {storage}"


@pytest.mark.parametrize("isa", ISAS)
def test_taps_are_the_same_and_change_no_bits(random_model, isa):
    pool = backend(isa)
    source = random_model("llama", "W4A16-g32", 5)
    fused, plain = prepared(pool, source, "fast", TAPS)
    for one, other in zip(bits(fused, TAPS), bits(plain, TAPS), strict=True):
        assert np.array_equal(one, other)
    untapped = pool.prepare(source, "fast", LIMITS)
    for one, other in zip(bits(untapped), bits(plain), strict=True):
        assert np.array_equal(one, other)


def test_the_id_names_the_numerics_not_the_fusing(random_model):
    """Equal ids promise equal bits; taps and fusing change what is kept and how ops are grouped, not a bit."""
    pool = backend(ISAS[-1], threads=1)
    fused, plain = prepared(pool, random_model("llama", "W4A16-g32", 0), "fast")
    tapped = pool.prepare(random_model("llama", "W4A16-g32", 0), "fast", LIMITS, TAPS)
    assert fused.numerics.id == plain.numerics.id == tapped.numerics.id
    assert fused.arena_bytes <= plain.arena_bytes


def test_every_weight_keeps_its_kernel_name(random_model):
    pool = backend(ISAS[-1], threads=1)
    for storage in ("W4A16-g32", "bf16", "NF4-g32"):
        fused, plain = prepared(pool, random_model("llama", storage, 0), "fast")
        assert {op.name for op in wanted_rows(plain.program).ops} == fused.choices.keys()
        gathers = {name for model in (fused, plain) for name, kernel in model.choices.items() if "gather" in kernel}
        chosen = [{name: model.choices[name] for name in model.choices.keys() - gathers} for model in (fused, plain)]
        assert chosen[0] == chosen[1]


def test_the_profile_names_every_operation_of_the_executed_program(random_model):
    pool = backend(ISAS[-1], threads=1)
    model = pool.prepare(random_model("llama", "W4A16-g32", 0), "fast", LIMITS)
    model.set_profiling(True)
    bits(model)
    assert [name for name, _ in model.profile()] == [op.name for op in model.program.ops]


@pytest.mark.parametrize("family", FAMILIES)
def test_the_reference_agrees_with_itself(random_model, family):
    pytest.importorskip("torch", reason="the reference backend needs PyTorch")
    from linnet.backends.reference.backend import ReferenceBackend, ReferenceExecutable

    for policy in ("exact", "fast"):
        for storage in ("bf16", "W4A16-g32"):
            source = random_model(family, storage, 1)
            program = choose_numerics(source.program, policy)
            plain = ReferenceExecutable(program, source, policy, LIMITS, TAPS)
            fused = ReferenceExecutable(fuse(wanted_rows(program, TAPS), TAPS), source, policy, LIMITS, TAPS)
            for one, other in zip(bits(fused, TAPS), bits(plain, TAPS), strict=True):
                assert np.array_equal(one, other), f"{storage}, {policy}"
            assert all(ReferenceBackend().supports(op, fused.program) is None for op in fused.program.ops)


def test_a_fused_op_is_refused_for_what_it_holds(random_model):
    """supports() answers for a fused op with the first of its ops that cannot be executed."""
    pool = backend(ISAS[-1], threads=1)
    program = fuse(choose_numerics(random_model("llama", "fp16", 0).program, "exact"))
    assert all(pool.supports(op, program) is None for op in program.ops)
    chain = next(op for op in program.ops if "kv_write" in op.name)
    renamed = [op if op.kind != "kv_write" else type(op)(**{**vars(op), "inputs": (*op.inputs[:2], "positions")})
               for op in chain.expansion]  # fmt: skip
    wrong = type(chain)(**{**vars(chain), "expansion": tuple(renamed)})
    assert "kv_write reads the program inputs kv_slots" in str(pool.supports(wrong, program))
