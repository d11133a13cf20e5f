# SPDX-License-Identifier: Apache-2.0
"""How long a context fits, and the sentence when it does not."""

import pytest

from linnet.api.memory import available_bytes, machine_bytes, plan_cache
from linnet.errors import CapacityError, ConfigError
from linnet.plan import KVLayer, KVShape

MIB = 1 << 20


def plan(**changes: object) -> object:
    settings = {
        "max_sequences": 4, "model_positions": 2048, "max_model_len": None, "kv_bytes": None, "free_bytes": 100 * MIB,
        "layers": [(1024, None)], **changes,
    }  # fmt: skip
    layers = tuple(KVLayer(*layer) for layer in settings.pop("layers"))  # type: ignore[attr-defined]
    shape = KVShape(layers, 16, settings.pop("max_sequences"), 512)  # type: ignore[arg-type]
    return plan_cache(shape=shape, **settings)  # type: ignore[arg-type]


def test_the_models_context_and_no_more_blocks_than_can_be_used() -> None:
    chosen = plan(parameters=10**9)
    assert (chosen.max_model_len, chosen.groups[0].num_blocks, chosen.shortened) == (2048, 4 * 128, False)  # type: ignore[attr-defined]


def test_little_memory_shortens_the_default_context() -> None:
    chosen = plan(kv_bytes=MIB // 2)
    assert (chosen.max_model_len, chosen.groups[0].num_blocks, chosen.shortened) == (512, 32, True)  # type: ignore[attr-defined]


def test_what_was_asked_for_and_does_not_fit_is_a_sentence() -> None:
    with pytest.raises(
        CapacityError, match=r"one sequence of 2048 tokens needs 2.0 MiB and 512.0 KiB are given to it "
    ):
        plan(kv_bytes=MIB // 2, max_model_len=2048)
    with pytest.raises(
        CapacityError,
        match=r"1.0 MiB are free, of which the model takes 512.0 KiB beside its KV "
        r"cache and 102.4 KiB are left to others\); a max_model_len of at most 400 fits",
    ):
        plan(free_bytes=MIB, max_model_len=1000, beside_bytes=lambda: MIB // 2)
    with pytest.raises(CapacityError, match=r"are given to it \(kv_bytes\); give more with kv_bytes"):
        plan(kv_bytes=100)  # of which not one block can be made


@pytest.mark.parametrize(
    "changes",
    [{"max_model_len": 0}, {"max_model_len": 4096}, {"kv_bytes": -1}, {"kv_bytes": True}, {"kv_bytes": "most"}],
)
def test_impossible_values(changes: dict[str, object]) -> None:
    with pytest.raises(ConfigError):
        plan(**changes)


def test_by_default_the_cache_fits_the_model_whatever_is_free() -> None:
    ample = {"free_bytes": 1 << 40, "max_sequences": 64, "model_positions": 8192}
    assert plan(**ample, parameters=1000).groups[0].num_blocks * 16 == 64 * 512  # type: ignore[attr-defined]
    assert plan(**ample, parameters=20_000_000).groups[0].num_blocks * 16 * 1024 == 80_000_000 // 16384 * 16384  # type: ignore[attr-defined]
    assert plan(**{**ample, "max_sequences": 4}, parameters=1).groups[0].num_blocks * 16 == 8192  # type: ignore[attr-defined]
    tight = {**ample, "free_bytes": 50 * MIB, "beside_bytes": lambda: 25 * MIB}
    assert plan(**tight, parameters=1000).groups[0].num_blocks == 1280  # type: ignore[attr-defined]


def test_all_is_what_is_free_but_for_the_rest_of_the_model_and_the_margin() -> None:
    given = {"kv_bytes": "all", "max_sequences": 64, "model_positions": 8192}
    assert plan(**given, free_bytes=50 * MIB, beside_bytes=lambda: 25 * MIB).groups[0].num_blocks == 1280  # type: ignore[attr-defined]
    assert plan(**given, free_bytes=1 << 40).groups[0].num_blocks == 64 * 512  # type: ignore[attr-defined]
    with pytest.raises(CapacityError, match=r"40\.0 MiB beside its KV cache"):
        plan(**given, free_bytes=41 * MIB, beside_bytes=lambda: 40 * MIB)


def test_no_more_memory_than_there_is() -> None:
    with pytest.raises(ConfigError, match=r"kv_bytes is 900.0 GiB; this machine has 20.0 GiB of memory"):
        plan(kv_bytes=900 << 30, machine_bytes=20 << 30)
    assert available_bytes() <= machine_bytes()


def test_free_memory_is_plausible() -> None:
    assert MIB < available_bytes() < 1 << 50


def test_layers_with_a_window_get_what_all_sequences_can_hold() -> None:
    """One layer in four sees everything: 512 tokens before a chunk of 512, so at most 65 blocks of 16 each."""
    layers = [(1024, None), (3 * 1024, 512)]
    chosen = plan(layers=layers, model_positions=8192, max_sequences=2)
    assert [group.num_blocks for group in chosen.groups] == [512, 2 * 65]  # type: ignore[attr-defined]
    small = plan(layers=layers, model_positions=8192, max_sequences=2, kv_bytes=12 * MIB)
    assert [group.num_blocks for group in small.groups] == [12 * 64 - 3 * 130, 130]  # type: ignore[attr-defined]
    assert small.max_model_len == 16 * (12 * 64 - 3 * 130)  # type: ignore[attr-defined]
    alike = plan(layers=[(4 * 1024, None)], model_positions=8192, max_sequences=2, kv_bytes=12 * MIB)
    assert alike.max_model_len == 3072  # type: ignore[attr-defined]


def test_where_all_layers_have_a_window_a_long_sequence_takes_no_more() -> None:
    chosen = plan(layers=[(1024, 512)], model_positions=1 << 20, max_sequences=3, kv_bytes=8 * MIB)
    assert (chosen.max_model_len, chosen.groups[0].num_blocks) == (1 << 20, 3 * 65)  # type: ignore[attr-defined]
    chosen = plan(layers=[(1024, 512)], model_positions=1 << 20, max_sequences=3, kv_bytes=MIB // 2)
    assert (chosen.max_model_len, chosen.groups[0].num_blocks) == (512, 32)  # type: ignore[attr-defined]
