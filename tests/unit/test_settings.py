# SPDX-License-Identifier: Apache-2.0
"""Records of what people decide: single fields by name, and what importing them costs."""

import subprocess
import sys
from dataclasses import FrozenInstanceError, fields

import pytest

from linnet.scheduler import SchedulerConfig
from linnet.settings import BackendSettings, EngineSettings, with_fields


def test_single_fields_go_into_their_record() -> None:
    given = {"threads": 2, "max_model_len": 256, "check": True}
    backend, engine = with_fields(BackendSettings(name="cpu", isa="avx2"), EngineSettings(kv_bytes=9), given)
    assert backend == BackendSettings(name="cpu", isa="avx2", threads=2)
    assert engine == EngineSettings(kv_bytes=9, max_model_len=256, check=True)


@pytest.mark.parametrize("name", ["max_len", "name", "policy"])
def test_an_unknown_field_is_told_the_known_ones(name: str) -> None:
    with pytest.raises(TypeError, match=rf"there is no setting {name}; there are ageing_s, block_size, check, isa"):
        with_fields(BackendSettings(), EngineSettings(), {name: 1})


def test_they_are_frozen_and_share_no_field() -> None:
    with pytest.raises(FrozenInstanceError):
        EngineSettings().token_budget = 3  # type: ignore[misc]
    assert not {one.name for one in fields(BackendSettings)} & {one.name for one in fields(EngineSettings)}


def test_an_engine_and_its_scheduler_have_the_same_defaults() -> None:
    """They are said in two rooms, which do not know each other."""
    ours = {one.name: one.default for one in fields(EngineSettings)}
    ours["policy"] = ours["scheduling"]
    derived = {"num_blocks", "max_model_len", "max_output_rows", "swap_blocks", "state_slots", "window", "more_groups"}
    derived |= {"whole_prompts"}
    theirs = {one.name: one.default for one in fields(SchedulerConfig) if one.name not in derived}
    assert {name: ours[name] for name in theirs} == theirs


def test_reading_them_loads_nothing_but_the_standard_library() -> None:
    code = "import sys, linnet.settings; print([n for n in ('numpy', 'typer', 'msgspec') if n in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"
