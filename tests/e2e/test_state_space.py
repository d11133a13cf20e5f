# SPDX-License-Identifier: Apache-2.0
"""Models whose layers carry states, all of them or beside one that attends: the engine's laws, bit for bit, and what
they refuse in words."""

import logging
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from serving import NAME, Running
from tiny_mamba import write_tiny_hybrid, write_tiny_mamba

from linnet.api import ENGINE_MODULE, LLM, EngineSettings, Opening, SamplingParams, begin_opening, open_in_process
from linnet.child_process import start_child
from linnet.errors import LinnetError
from linnet.models import load_model
from linnet.plan.describe import describe

pytest.importorskip("linnet.backends.cpu._native", reason="the native kernels are not built")

PROMPTS = [[5, 9, 33, 17, 60, 2, 8], [40], list(range(30, 77)), [5, 9, 33, 17, 60, 2, 8], [7, 7, 7]]
PARAMS = SamplingParams(temperature=0.8, seed=11, max_tokens=9, logprobs=2, ignore_eos=True)


@pytest.fixture(scope="module", params=[write_tiny_mamba, write_tiny_hybrid], ids=["state space", "hybrid"])
def model(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Path:
    written: Path = request.param(tmp_path_factory.mktemp("carrying") / request.param.__name__)
    return written


def told(llm: LLM, prompts: list[list[int]], params: SamplingParams = PARAMS) -> list[Any]:
    """Tokens and their log-probabilities, to the bit."""
    return [
        [(one.token_ids, [asdict(each) for each in one.logprobs or ()]) for one in output.outputs]
        for output in llm.generate(prompts, params)
    ]


def opened(model: Path, **settings: Any) -> LLM:
    settings = {"max_model_len": 128, "check": True, "prefix_cache": False} | settings
    backend = {name: settings.pop(name) for name in ("policy", "threads") if name in settings}
    return LLM(model, **backend, **settings)


@pytest.mark.parametrize("policy", ["exact", "fast"])
@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"max_chunk_tokens": 1},
        {"max_chunk_tokens": 5, "token_budget": 8, "max_sequences": 3},
        {"preempt_every": 1, "max_sequences": 2},
        {"preempt_every": 2, "max_chunk_tokens": 3, "token_budget": 6},
        {"num_blocks": 8, "threads": 2},
    ],
    ids=str,
)
def test_company_chunks_and_preemption_change_no_bit(model: Path, policy: str, settings: dict[str, Any]) -> None:
    with opened(model, policy=policy, max_sequences=1) as llm:
        alone = [told(llm, [prompt])[0] for prompt in PROMPTS]
    with opened(model, policy=policy, **settings) as llm:
        assert told(llm, PROMPTS) == alone
        assert llm.counters().preemptions > 0 or "preempt_every" not in settings
        assert told(llm, PROMPTS[::-1]) == alone[::-1]  # slots that others have used


def test_a_process_says_what_a_thread_says(model: Path) -> None:
    engine = EngineSettings(max_model_len=128, max_sequences=3, max_chunk_tokens=5, check=True)
    opening = Opening(path=model, policy="exact", engine=engine)
    served = open_in_process(opening, begin_opening(opening, start_child(ENGINE_MODULE)))
    assert (served.facts.scheduling.state_slots, served.facts.scheduling.prefix_cache) == (3, False)
    with opened(model, policy="exact") as llm:
        here = [list(one[0][0]) for one in told(llm, PROMPTS, SamplingParams(temperature=0.0, max_tokens=9))]
    with Running(served) as server:
        body = {"model": NAME, "prompt": PROMPTS, "return_token_ids": True, "temperature": 0, "max_tokens": 9}
        answer = server.http.post("/v1/completions", json=body)
        assert answer.status_code == 200, answer.text
        assert [choice["token_ids"] for choice in answer.json()["choices"]] == here
        refused = server.http.post("/v1/completions", json=body | {"n": 2, "use_beam_search": True})
        assert (refused.status_code, "use_beam_search" in refused.text) == (400, True)


def test_samples_of_one_prompt_each_have_a_state(model: Path) -> None:
    params = SamplingParams(temperature=0.9, seed=3, max_tokens=6, n=3, ignore_eos=True)
    with opened(model, max_sequences=1) as llm:
        one_by_one = told(llm, [PROMPTS[2]], params)
    with opened(model, max_chunk_tokens=7) as llm:
        assert told(llm, [PROMPTS[2], PROMPTS[0]], params)[0] == one_by_one[0]
    assert len({tokens for tokens, _ in one_by_one[0]}) > 1


def test_scores_are_the_same_in_chunks_and_beside_another_model(model: Path) -> None:
    with opened(model, policy="exact") as llm:
        whole = llm.score([PROMPTS[2], PROMPTS[0]])
    rounded = LLM(model, policy="exact", quantize="W8A16", max_model_len=128, max_sequences=2, prefix_cache=False)
    with opened(model, policy="exact", max_chunk_tokens=4) as llm, rounded as other:
        cut = llm.score([PROMPTS[2], PROMPTS[0]])
        beside = llm.compare(other, [PROMPTS[2], PROMPTS[0]])
    for one, two, three in zip(whole, cut, beside, strict=True):
        assert np.array_equal(one, two)
        assert np.array_equal(one, three.logprobs)
        assert 0 < three.kl.mean() < 0.2


def test_what_a_state_does_not_allow_is_said(model: Path, caplog: pytest.LogCaptureFixture) -> None:
    with pytest.raises(LinnetError, match=f"kv_swap_bytes is 1048576; accepted is 0: layers of {model.name} carry"):
        LLM(model, kv_swap_bytes=1 << 20)
    with caplog.at_level(logging.WARNING), opened(model, prefix_cache=True) as llm:
        assert f"the prefix cache is off: layers of {model.name} carry a state" in caplog.text
        llm.generate([PROMPTS[2], PROMPTS[2]], PARAMS)
        assert llm.counters().prefix_hit_tokens == 0
        with pytest.raises(LinnetError, match="use_beam_search is not possible with this model"):
            llm.generate([PROMPTS[0]], SamplingParams(n=2, use_beam_search=True, max_tokens=3))


def test_states_are_counted(model: Path) -> None:
    hybrid = model.name == write_tiny_hybrid.__name__
    convolved = 64 + (2 * 2 * 8 if hybrid else 0)
    each = 2 * (3 * convolved + 8 * 64) * 4
    facts = describe(load_model(model), sequences=5)
    assert facts["predicted_memory"]["state_bytes"] == 5 * each
    assert (facts["predicted_memory"]["kv_bytes"] > 0) == hybrid
    assert facts["state_space"] == f"64 channels of 8 states in 2 of {3 if hybrid else 2} layers"
    with opened(model, max_sequences=7) as llm:
        assert (llm.footprint.kv_bytes > 0) == hybrid
        assert llm.footprint.step_bytes == llm.executable.arena_bytes + 7 * each
