# SPDX-License-Identifier: Apache-2.0
"""What ``generation_config.json`` recommends holds where nothing is asked for, and nowhere else."""

import json
from pathlib import Path
from typing import Any

import pytest
from tiny_llama import write_tiny_llama

from linnet.api import CHAT_MAX_TOKENS, LLM, SamplingDefaults, SamplingParams, new_tokens, read_sampling_defaults
from linnet.errors import CheckpointError, ConfigError

QWEN = {"do_sample": True, "temperature": 0.7, "top_p": 0.8, "top_k": 20, "repetition_penalty": 1.05, "eos_token_id": 2}


def written(folder: Path, config: object) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "generation_config.json").write_text(json.dumps(config))
    return folder


@pytest.mark.parametrize(
    ("config", "values", "max_tokens"),
    [
        (QWEN, {"temperature": 0.7, "top_p": 0.8, "top_k": 20, "repetition_penalty": 1.05}, None),
        ({"temperature": 0.6, "min_p": 0.05, "max_new_tokens": 2048}, {"temperature": 0.6, "min_p": 0.05}, 2048),
        ({"do_sample": True, "top_k": 50.0}, {"temperature": 1.0, "top_k": 50}, None),
        (
            {"do_sample": False, "temperature": 0.9, "top_p": 0.9, "repetition_penalty": 1.1},
            {"temperature": 0.0, "repetition_penalty": 1.1},
            None,
        ),
        ({"temperature": None, "bos_token_id": 1}, {}, None),
    ],
)
def test_what_is_read(tmp_path: Path, config: object, values: dict[str, Any], max_tokens: int | None) -> None:
    assert read_sampling_defaults(written(tmp_path, config)) == SamplingDefaults(values, max_tokens)


def test_where_it_is_read(tmp_path: Path) -> None:
    own, other = written(tmp_path / "own", QWEN), written(tmp_path / "other", {"temperature": 0.3})
    assert read_sampling_defaults(own, "none") == SamplingDefaults()
    assert read_sampling_defaults(own, other).values == {"temperature": 0.3}
    assert read_sampling_defaults(own, str(other)).values == {"temperature": 0.3}
    (own / "generation_config.json").unlink()
    assert read_sampling_defaults(own) == SamplingDefaults()
    with pytest.raises(ConfigError, match=r"generation_config is 'atuo'; accepted are auto, none and a folder"):
        read_sampling_defaults(own, "atuo")


@pytest.mark.parametrize(
    ("config", "sentence"),
    [
        ({"temperature": -1}, r"generation_config\.json: temperature is -1; accepted is a number"),
        ({"do_sample": False, "top_p": "high"}, r"top_p is 'high'; accepted is a number above 0 and at most 1"),
        ({"top_k": 2.5}, r"top_k is 2\.5; accepted is a whole number"),
        (
            {"max_new_tokens": 0},
            r"generation_config\.json: max_new_tokens is 0; accepted is a whole number of at least 1",
        ),
        ({"temperature": float("nan")}, r"temperature is nan; accepted"),
    ],
)
def test_a_value_that_no_sampler_accepts_is_one_sentence(tmp_path: Path, config: object, sentence: str) -> None:
    with pytest.raises(CheckpointError, match=sentence + ".*generation_config none"):
        read_sampling_defaults(written(tmp_path, config))


def test_asked_wins_over_recommended_wins_over_the_rest() -> None:
    defaults = SamplingDefaults({"temperature": 0.7, "top_k": 20}, 100)
    params = defaults.params({"temperature": 0.0, "top_k": None}, {"top_k": 5, "min_p": 0.1})
    assert (params.temperature, params.top_k, params.min_p, params.max_tokens) == (0.0, 20, 0.1, None)
    assert str(defaults) == "temperature 0.7, top_k 20, max_tokens 100"
    assert str(SamplingDefaults()) == ""


@pytest.mark.parametrize(
    ("params", "room", "default", "expected"),
    [
        (SamplingParams(max_tokens=7), 3, 5, 7),  # the engine refuses it in words
        (SamplingParams(), 30, 5, 5),
        (SamplingParams(), 3, 5, 3),
        (SamplingParams(min_tokens=9), 30, 5, 9),
        (SamplingParams(), 30, None, 30),
        (SamplingParams(), -2, 5, 0),
    ],
)
def test_how_long_an_answer_may_be(params: SamplingParams, room: int, default: int | None, expected: int) -> None:
    assert new_tokens(params, room, default) == expected


def test_an_open_model_follows_its_checkpoint_unless_told_otherwise(tmp_path: Path) -> None:
    directory = write_tiny_llama(tmp_path / "model")
    written(directory, {"eos_token_id": 2, "temperature": 0.9, "top_k": 3, "max_new_tokens": 6})
    sampled = SamplingParams(temperature=0.9, top_k=3, seed=11, max_tokens=6)
    messages = [{"role": "user", "content": "the cat"}]
    seeded = {"seed_source": lambda: 11, "max_sequences": 2}
    with LLM(directory, **seeded) as llm:
        assert llm.generate("the cat")[0].outputs == llm.generate("the cat", sampled)[0].outputs
        assert "".join(piece.text for piece in llm.stream("the cat")) == llm.generate("the cat")[0].outputs[0].text
        assert llm.chat(messages)[0].outputs == llm.chat(messages, sampled)[0].outputs
        greedy = llm.generate("the cat", SamplingParams(temperature=0.0, seed=11, ignore_eos=True))[0].outputs[0]
        assert len(greedy.token_ids) > 6, "given parameters hold as they are"
    with LLM(directory, generation_config="none", **seeded) as llm:
        plain = SamplingParams(seed=11)
        assert llm.generate("the cat")[0].outputs == llm.generate("the cat", plain)[0].outputs


def test_a_broken_recommendation_hinders_nobody_who_does_not_need_it(tmp_path: Path) -> None:
    directory = write_tiny_llama(tmp_path / "model")
    written(directory, {"temperature": -1})
    with LLM(directory, max_sequences=2) as llm:
        assert llm.generate("the cat", SamplingParams(temperature=0.0, max_tokens=2))
        with pytest.raises(CheckpointError, match="temperature is -1"):
            llm.generate("the cat")


def test_a_chat_ends_at_a_bound(tmp_path: Path) -> None:
    directory = write_tiny_llama(tmp_path / "model")
    config = json.loads((directory / "config.json").read_text())
    (directory / "config.json").write_text(json.dumps(config | {"max_position_embeddings": 3 * CHAT_MAX_TOKENS}))
    with LLM(directory, max_sequences=1) as llm:
        params = SamplingParams(temperature=0.0, ignore_eos=True)
        answer = llm.chat([{"role": "user", "content": "the cat"}], params)[0].outputs[0]
    assert (len(answer.token_ids), answer.finish_reason) == (CHAT_MAX_TOKENS, "length")
