# SPDX-License-Identifier: Apache-2.0
"""``linnet bench serve`` against a server of ours: what it counts is what the server counted."""

import json
from pathlib import Path

import pytest
from serving import NAME, Running, digest_model

from linnet.cli.main import run

KEY = "first-secret-key"


def test_its_figures_are_the_servers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("LINNET_API_KEY", KEY)
    sizes = ["--prompt-tokens", "20", "--new-tokens", "9", "--shared-tokens", "8", "--vocabulary", "200"]
    with Running(digest_model(), keys=(KEY,)) as server:
        load = ["--requests", "12", "--rate", "40", "--concurrency", "4", "--json", str(tmp_path / "found.json")]
        assert run(["bench", "serve", server.url, *sizes, *load]) == 0
        found = json.loads((tmp_path / "found.json").read_text())
        assert server.metric("prompt_tokens_total") == 12 * 20 == sum(one["prompt_tokens"] for one in found["requests"])
        assert server.metric("generation_tokens_total") == 12 * 9 == sum(one["new_tokens"] for one in found["requests"])
        assert server.metric("prefix_cache_hits_total") > 0
        assert found["figures"]["failed"] == 0
        assert found["figures"]["ttft_s"]["p50"] <= found["figures"]["ttft_s"]["p99"]
        assert f"{NAME} on {server.url}: 12 requests" in capsys.readouterr().out
        assert run(["bench", "serve", server.url, *sizes, "--requests", "2", "--prompt-tokens", "999"]) == 5
        assert "none of 2 requests was answered: 400:" in capsys.readouterr().err
        monkeypatch.delenv("LINNET_API_KEY")
        assert run(["bench", "serve", server.url]) == 5
        assert "401" in capsys.readouterr().err
    assert run(["bench", "serve", server.url]) == 5
    assert "does not answer" in capsys.readouterr().err
