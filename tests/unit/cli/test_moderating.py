# SPDX-License-Identifier: Apache-2.0
"""Where the moderation hook comes from, and the sentence when it does not come."""

from importlib import metadata

import pytest

from linnet.cli.moderating import ENTRY_POINTS, moderation_hook
from linnet.errors import ConfigError


def allow(shown: str, fresh: str) -> str:
    return "continue"


def test_a_function_of_a_module() -> None:
    assert moderation_hook(None) is None
    assert moderation_hook("os.path:join").__name__ == "join"  # type: ignore[union-attr]


def test_an_entry_point(monkeypatch: pytest.MonkeyPatch) -> None:
    point = metadata.EntryPoint("house", "os.path:join", ENTRY_POINTS)
    monkeypatch.setattr(metadata, "entry_points", lambda group: metadata.EntryPoints([point]))
    assert moderation_hook("house").__name__ == "join"  # type: ignore[union-attr]
    with pytest.raises(ConfigError, match=r"moderation is 'home'; accepted is .*; installed are house"):
        moderation_hook("home")


@pytest.mark.parametrize(
    ("named", "sentence"),
    [
        ("nothing", "accepted is module:function"),
        ("nothing_here:f", "cannot be loaded: ModuleNotFoundError: No module named 'nothing_here'"),
        ("os:nothing", "cannot be loaded: AttributeError"),
        ("os:sep", "which is no function"),
    ],
)
def test_what_cannot_be(named: str, sentence: str) -> None:
    with pytest.raises(ConfigError, match=sentence):
        moderation_hook(named)
