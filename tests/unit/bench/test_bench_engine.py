# SPDX-License-Identifier: Apache-2.0
"""The pure parts of bench/engine.py, process.py, startup.py, worker.py and quality.py."""

import io
import json
import sys
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tokenizers import Tokenizer, models, pre_tokenizers

import engine
import process
import startup
from linnet.backends.interface import Limits
from linnet.plan import Ledger
from linnet.plan.ledger import KVLayer
from peers import quality, worker


def test_overhead_is_what_is_not_the_model() -> None:
    parts = {"matrix kernels": 0.6, "attention": 0.2, "other ops": 0.1, "sampling": 0.05}
    assert engine.overhead(parts, 1.0) == pytest.approx(0.1)


def test_the_break_down_adds_up_to_the_step() -> None:
    table = engine.breakdown_table({"batch 1": {"steps": 2, "total_s": 2e-3, "parts_s": {"attention": 1e-3}}})
    first = dict(zip(table.columns[0].cells, table.columns[1].cells, strict=True))
    assert first["attention"] == "500 (50.0%)"
    assert first["rest of the loop"] == "500 (50.0%)"
    assert first["step"] == "1,000 (100.0%)"
    assert first["overhead"] == "50.0%"


def test_shares_are_quotients_with_the_probe_of_the_same_sample() -> None:
    nothing = dict.fromkeys((field.name for field in fields(Ledger)), 0)
    known = {"kv_layers": (KVLayer(100, None),), "step_weight_bytes": 1000, "prompt_multiplications": 40}
    ledger = Ledger(**{**nothing, **known, "policy": "fast", "limits": Limits(1, 1, 1, 16, 1)})
    context = engine.DECODE_PROMPT + engine.DECODE_TOKENS // 2
    found = {
        "decode_tokens_per_s": [1.0, 2.0],
        "decode.read": [1e5, 2e5],
        "prefill_tokens_per_s": [4.0],
        "prefill.int8": [400.0],
    }
    shares = engine.shares(found, ledger)
    assert shares["decode_bandwidth_share"] == pytest.approx((1000 + 100 * context) / 1e5)
    assert shares["prefill_int8_share"] == pytest.approx(40 * 4 / 400)


def test_a_worker_is_started_without_its_folder_on_the_path() -> None:
    command = process.command("python3", "llama", Path("m.gguf"), {"threads": 2})
    assert command[:2] == ["python3", "-P"]
    assert command[3:] == ["llama", "m.gguf", '{"threads": 2}']


def test_a_worker_that_dies_says_its_last_words(tmp_path: Path) -> None:
    with pytest.raises(process.WorkerError, match="nobody nothing ended early: ModuleNotFoundError"):
        process.EngineProcess("nobody", Path("nothing"), tmp_path / "log")


def test_the_worker_answers_line_by_line(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[int, int, int]] = []

    def open_model(model: str, settings: dict[str, Any]) -> Any:
        def run(prompts: worker.Prompts, new: int) -> tuple[float, float]:
            asked.append((len(prompts), len(prompts[0]), new))
            return 0.5, 1.0

        return run, {"echo": lambda source, **request: request}

    lines = [{"prompt": 7, "new": 3, "sequences": 2}, {"measure": "echo", "word": "hello"}]
    monkeypatch.setattr(sys, "stdin", io.StringIO("".join(json.dumps(line) + "\n" for line in lines)))
    answers = io.StringIO()
    worker.serve(open_model, "model", {}, answers)
    first, second, third = map(json.loads, answers.getvalue().splitlines())
    assert first["first_token_s"] > 0
    assert second["total_s"] == 1.0
    assert second["peak_rss_bytes"] > 1e6
    assert third["word"] == "hello"
    assert asked == [(1, worker.PROMPT_TOKENS_AT_START, 1), (2, 7, 3)]


def test_no_prompt_comes_twice() -> None:
    source = worker.PromptSource()
    first, second = source.take(32, 1), source.take(32, 2)
    assert len({tuple(prompt) for prompt in first + second}) == 3


def test_the_prompt_has_as_many_tokens_as_it_says(tmp_path: Path) -> None:
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={piece: index for index, piece in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    assert len(startup.prompt_text(tmp_path)) == 32
    assert startup.command(tmp_path, "x")[-3:] == ["x", "--max-tokens", "1"]


def test_equal_distributions_lose_nothing_whatever_their_offset() -> None:
    logits = np.random.default_rng(0).standard_normal((6, 11)).astype(np.float32)
    ids = np.array([0, 3, 5, 1, 2, 4])
    kl, nll = quality.window_loss(quality.log_softmax(logits), logits + 5, ids)
    assert kl == pytest.approx(0, abs=1e-6)
    assert nll == pytest.approx(-quality.log_softmax(logits)[np.arange(5), ids[1:]].sum(), abs=1e-5)
    assert quality.window_loss(quality.log_softmax(logits), 2 * logits, ids)[0] > 0.1


def test_pairs_are_of_equal_or_fewer_bytes() -> None:
    def loss(name: str, nbytes: int, kl: float) -> quality.Loss:
        return quality.Loss(name, nbytes, np.full(4, kl), np.full(4, 100.0))

    losses = [loss("llama.cpp Q4_0", 100, 2.0), loss("linnet W4 a", 99, 1.0), loss("linnet W4 b", 101, 0.1)]
    text = quality.pairs(losses)
    assert "linnet W4 a | 0.990 | 0.500 [0.500, 0.500]" in text
    assert "linnet W4 b" not in text
