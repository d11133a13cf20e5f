# SPDX-License-Identifier: Apache-2.0
"""Options that are fields of records: what a command gets, and that nothing is said twice."""

import inspect
import re
from pathlib import Path
from typing import Any

import pytest
import typer

from linnet.cli import options
from linnet.cli.declaring import Given, Setting, offers
from linnet.cli.serve_options import SERVING
from linnet.cli.words import NAMES
from linnet.errors import ConfigError
from linnet.settings import BackendSettings, EngineSettings, RequestLimits, ServeConfig, SessionLimits, names_of


def taken(settings: tuple[Setting, ...], *arguments: str) -> Given:
    """What a command that offers ``settings`` is given by a command line."""
    found: list[Given] = []

    @offers(given=settings)
    def command(model: str = "m", *, given: Given, last: bool = False) -> None:
        found.append(given)

    app = typer.Typer(context_settings={"auto_envvar_prefix": "TEST"})
    app.command()(command)
    app(list(arguments), standalone_mode=False)
    return found[0]


def test_what_is_not_asked_for_is_what_the_records_say() -> None:
    given = taken(options.OPENING)
    assert given.make(BackendSettings) == BackendSettings()
    assert given.make(EngineSettings) == EngineSettings()
    served = taken(SERVING)
    assert served.make(EngineSettings) == EngineSettings(step_budget_s=0.1)
    assert served.make(RequestLimits) == RequestLimits()
    assert served.make(ServeConfig, names=("m",)) == ServeConfig(names=("m",))


def test_every_option_reaches_its_field(tmp_path: Path) -> None:
    line = "--kv-cache-memory 64MiB --max-num-seqs 3 --max-num-batched-tokens 1k --step-budget 0 --max-waiting 7"
    line += " --no-enable-prefix-caching --scheduling-policy priority --max-model-len 2K --threads 2 --backend cpu"
    line += " --no-tile-cache --allowed-host a --allowed-host b --uds /x --max-body-size 1KiB --request-timeout 2"
    line += " --log-format json --metrics-compat vllm --served-model-name s --served-model-name t --served-model-name s"
    line += " --ageing 5 --predict-length limit --kept-share 0.25 --max-sessions 9 --session-ttl 60 --session-dir /d"
    (tmp_path / "rules").write_text("Be brief. é", encoding="utf-8")
    line += f" --prompt-module rules={tmp_path / 'rules'} --prompt-module again={tmp_path / 'rules'}"
    given = taken(SERVING, *line.split())
    assert given.make(EngineSettings) == EngineSettings(
        kv_bytes=64 << 20, max_sequences=3, token_budget=1000, max_waiting_requests=7, prefix_cache=False,
        scheduling="priority", max_model_len=2048, ageing_s=5.0, predict_length="limit", kept_share=0.25,
    )  # fmt: skip
    assert given.make(BackendSettings, large_pages=True) == BackendSettings(
        name="cpu", threads=2, tile_cache=False, large_pages=True
    )
    assert given.make(RequestLimits) == RequestLimits(body_bytes=1024, deadline_s=2.0)
    config = given.make(ServeConfig, names=given["names"])
    assert (config.names, config.allowed_hosts, config.uds) == (("s", "t"), ("a", "b"), "/x")
    assert given.make(SessionLimits) == SessionLimits(max_sessions=9, session_ttl_s=60.0)
    assert config.session_dir == Path("/d")
    assert config.prompt_modules == (("rules", "Be brief. é"), ("again", "Be brief. é"))
    assert (config.log_json, config.metrics_prefix) == (True, "vllm")
    assert given["policy"] == "fast"
    assert given.get("nothing", 7) == 7
    with pytest.raises(KeyError):
        given["nothing"]


def test_the_environment_is_read_under_the_names_of_the_options(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TEST_KV_CACHE_MEMORY", "1MiB")
    assert taken(options.OPENING).make(EngineSettings).kv_bytes == 1 << 20


def test_a_value_that_cannot_be_is_refused_before_the_command_runs() -> None:
    for line, sentence in (("--log-format xml", "log_format"), ("--metrics-compat sglang", "metrics_compat")):
        with pytest.raises(ConfigError, match=sentence):
            taken(SERVING, *line.split())


def test_a_module_is_a_name_and_a_file(tmp_path: Path) -> None:
    (tmp_path / "odd").write_bytes(b"\xff")
    for value, sentence in (
        ("rules", "--prompt-module is 'rules'; accepted is NAME=FILE"),
        ("=x", "accepted is NAME=FILE"),
        ("rules=", "accepted is NAME=FILE"),
        (f"rules={tmp_path / 'none'}", "none cannot be read: No such file"),
        (f"rules={tmp_path}", "cannot be read: Is a directory"),
        (f"rules={tmp_path / 'odd'}", "odd is not UTF-8 text"),
    ):
        with pytest.raises(ConfigError, match=re.escape(sentence)):
            taken(SERVING, "--prompt-module", value)
    (tmp_path / "text").write_text("x")
    with pytest.raises(ConfigError, match="names 'rules' twice"):
        taken(SERVING, *(f"--prompt-module rules={tmp_path / 'text'}".split() * 2))


def test_groups_stand_where_the_command_names_them() -> None:
    @offers(first=(options.THREADS,), second=(options.ISA, options.POLICY))
    def command(model: str, *, first: Given, between: int = 1, second: Given, last: bool = False) -> None:
        """Nothing."""

    assert list(inspect.signature(command).parameters) == ["model", "threads", "between", "isa", "policy", "last"]
    assert command.__doc__ == "Nothing."


def test_every_setting_is_a_field_and_is_offered_once() -> None:
    names: list[str] = []
    for setting in SERVING:
        names.append(setting.name)
        assert setting.record is None or setting.parameter in names_of(setting.record)
    assert len(set(names)) == len(names)
    assert {NAMES[name] for name in ("kv_bytes", "token_budget", "deadline_s")} == {
        "kv_cache_memory", "max_num_batched_tokens", "request_timeout"
    }  # fmt: skip


def test_a_setting_without_a_type_or_default_is_our_mistake() -> None:
    for fields in ({"kind": int}, {"default": 1}):
        broken: Any = Setting(name="x", option=options.option(), **fields)
        with pytest.raises(AssertionError, match="x has no"):
            broken.declared()
