# SPDX-License-Identifier: Apache-2.0
"""Keys and values that outlive their engine: the next one finds them and says what one says that caches nothing, bit
for bit; where model, numerics or cache are others, or bytes are damaged, they are computed again."""

import logging
import shutil
import struct
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pytest
from tiny_llama import write_tiny_llama

from linnet.api import LLM, RequestOutput, SamplingParams
from linnet.engine.block_store import KEPT_NAME
from linnet.errors import ConfigError
from linnet.settings import EngineSettings

PARAMS = SamplingParams(temperature=0.8, max_tokens=8, seed=7, logprobs=2)
PROMPTS = [[5 + index, *range(10, 50)] for index in range(4)]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_llama(tmp_path_factory.mktemp("tiny"), dtype="bfloat16")


def opened(model: Path, folder: Path, **changes: Any) -> LLM:
    given = {"policy": "fast", "num_blocks": 64, "block_size": 4, "max_sequences": 4, "check": True}
    kept = {"kv_swap_bytes": 1 << 20, "kv_swap_dir": folder, "kv_swap_keep": True}
    return LLM(model, **given | kept | changes)


def bits(output: RequestOutput) -> Any:
    (answer,) = output.outputs
    assert answer.logprobs is not None
    return answer.token_ids, [struct.pack("<f", value) for one in answer.logprobs for _, value in one.top]


def plain(model: Path, **changes: Any) -> list[Any]:
    settings = {"policy": "fast", "num_blocks": 64, "block_size": 4, "max_sequences": 4, "prefix_cache": False}
    with LLM(model, **settings | changes) as llm:
        return [bits(output) for output in llm.generate(PROMPTS, PARAMS)]


def leave(model: Path, folder: Path, **changes: Any) -> None:
    """An engine that has computed the prompts and ends."""
    with opened(model, folder, **changes) as llm:
        assert [one.cached_tokens for one in llm.generate(PROMPTS, PARAMS)] == [0] * 4


@pytest.mark.parametrize("kv_cache", ["auto", "fp32", "int8", "fp8", "int4"])
def test_the_next_engine_finds_what_the_last_one_computed(model: Path, tmp_path: Path, kv_cache: Any) -> None:
    leave(model, tmp_path, kv_cache=kv_cache)
    for _ in range(2):  # and the one after it too
        with opened(model, tmp_path, kv_cache=kv_cache) as llm:
            outputs = llm.generate(PROMPTS, PARAMS)
            assert [one.cached_tokens for one in outputs] == [40] * 4
            assert llm.counters().swapped_in_blocks == 40
            assert [bits(one) for one in outputs] == plain(model, kv_cache=kv_cache)


def test_a_conversation_goes_on_in_the_next_engine(model: Path, tmp_path: Path) -> None:
    """As a server's does, whose session files hold the words."""
    conversation = [{"role": "user", "content": "the cat and the hat in the rain"}]
    with opened(model, tmp_path) as llm:
        answer = llm.chat(conversation, PARAMS, session="talk")[0].outputs[0].text
    conversation += [{"role": "assistant", "content": answer}, {"role": "user", "content": "and then?"}]
    with opened(model, tmp_path) as llm:
        (again,) = llm.chat(conversation, PARAMS)
        assert again.cached_tokens >= 28
    with LLM(model, policy="fast", block_size=4, prefix_cache=False) as llm:
        assert bits(llm.chat(conversation, PARAMS)[0]) == bits(again)


CHANGES: list[dict[str, Any]] = [
    {"kv_cache": "int8"},
    {"policy": "exact"},
    {"block_size": 8},
    {"quantize": "W8A16"},
    {"kv_swap_bytes": 1 << 21},
]


@pytest.mark.parametrize("changes", CHANGES)
def test_an_engine_that_computes_otherwise_finds_nothing(
    model: Path, tmp_path: Path, changes: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    leave(model, tmp_path)
    caplog.clear()
    with opened(model, tmp_path, **changes) as llm:
        outputs = llm.generate(PROMPTS, PARAMS)
        assert [one.cached_tokens for one in outputs] == [0] * 4
    same = {name: value for name, value in changes.items() if name != "kv_swap_bytes"}
    assert [bits(one) for one in outputs] == plain(model, **same)
    told = [one.getMessage() for one in caplog.records if KEPT_NAME in one.getMessage()]
    assert len(told) == 1
    assert told[0].endswith("they are forgotten and will be computed again")


def test_other_weights_under_the_same_name_find_nothing(tmp_path: Path) -> None:
    """The program is the same to the last digit; what it would be computed with is not."""
    model, folder = write_tiny_llama(tmp_path / "model"), tmp_path / "swap"
    folder.mkdir()
    leave(model, folder)
    shutil.rmtree(model)
    write_tiny_llama(model, seed=1)
    with opened(model, folder) as llm:
        outputs = llm.generate(PROMPTS, PARAMS)
    assert [one.cached_tokens for one in outputs] == [0] * 4
    assert [bits(one) for one in outputs] == plain(model)


@pytest.mark.parametrize("seed", range(4))
def test_damaged_blocks_are_computed_again(
    model: Path, tmp_path: Path, seed: int, caplog: pytest.LogCaptureFixture
) -> None:
    leave(model, tmp_path)
    content = np.fromfile(tmp_path / KEPT_NAME, np.uint8)
    random = Random(seed)
    for _ in range(200):
        content[random.randrange(4096, len(content))] ^= 1 << random.randrange(8)
    content.tofile(tmp_path / KEPT_NAME)
    caplog.set_level(logging.WARNING)
    with opened(model, tmp_path) as llm:
        outputs = llm.generate(PROMPTS, PARAMS)
    assert [bits(one) for one in outputs] == plain(model)
    assert sum("are damaged and will be computed again" in one.getMessage() for one in caplog.records) == 1


def test_an_engine_that_did_not_end_in_order_leaves_nothing(
    model: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    llm = opened(model, tmp_path)
    llm.generate(PROMPTS, PARAMS)
    saved = (tmp_path / KEPT_NAME).read_bytes()  # as the disk has it when the process is killed now
    llm.close()
    (tmp_path / KEPT_NAME).write_bytes(saved)
    caplog.clear()
    with opened(model, tmp_path) as again:
        assert [one.cached_tokens for one in again.generate(PROMPTS, PARAMS)] == [0] * 4
    assert sum("was not left in order" in one.getMessage() for one in caplog.records) == 1


def test_what_is_wanted_most_is_kept_where_there_is_no_room_for_all(model: Path, tmp_path: Path) -> None:
    with opened(model, tmp_path) as llm:
        block_bytes = sum(llm.executable.stored_bytes_per_block)
    (tmp_path / KEPT_NAME).unlink()
    with opened(model, tmp_path, kv_swap_bytes=16 * block_bytes) as llm:
        talk = llm.generate(PROMPTS[0], PARAMS, session="talk")[0]
        llm.generate(PROMPTS[1:], PARAMS)
    with opened(model, tmp_path, kv_swap_bytes=16 * block_bytes) as llm:
        assert llm.generate(PROMPTS[0], PARAMS)[0].cached_tokens == 40
        more = [*PROMPTS[0], *talk.outputs[0].token_ids, 9]
        assert llm.generate(more, PARAMS)[0].cached_tokens >= 44


@pytest.mark.parametrize(
    "settings",
    [
        {"kv_swap_dir": None},
        {"kv_swap_bytes": None},
        {"kv_swap_bytes": 0},
        {"kv_swap_dir": None, "kv_swap_bytes": None},
    ],
)
def test_a_file_that_is_kept_needs_a_place_and_a_size(model: Path, tmp_path: Path, settings: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="kv_swap_keep is on without kv_swap_dir and kv_swap_bytes"):
        opened(model, tmp_path, **settings)
    assert not EngineSettings().kv_swap_keep
