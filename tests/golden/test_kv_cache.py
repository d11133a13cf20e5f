# SPDX-License-Identifier: Apache-2.0
"""What each type of KV cache costs on trained weights: KL against exact arithmetic, on text the model itself writes."""

from dataclasses import replace

import pytest

pytest.importorskip("linnet.backends.cpu._native", reason="the native extension is not built")

from linnet import demo
from linnet.api import LLM, SamplingParams
from linnet.evals import windows
from linnet.evals.text_loss import Windows, compare

KL_BOUNDS = {"bf16": 1e-3, "int8": 1e-3, "fp8": 3e-3, "int4": 0.06}
SETTINGS = {"kv_bytes": 2**24, "max_model_len": 256}


@pytest.fixture(scope="module")
def written() -> Windows:
    sampled = SamplingParams(max_tokens=200, ignore_eos=True)
    with LLM(demo.model_directory(), policy="exact", **SETTINGS) as exact:
        outputs = exact.generate(["Once upon a time"] * 6, [replace(sampled, seed=seed) for seed in range(6)])
    return windows([token for output in outputs for token in output.outputs[0].token_ids], 256, 128)


@pytest.mark.parametrize("policy", ["fast", "exact"])
def test_each_type_costs_what_it_says(written: Windows, policy: str) -> None:
    found = {}
    with LLM(demo.model_directory(), policy="exact", **SETTINGS) as exact:
        for kv_cache in KL_BOUNDS:
            with LLM(demo.model_directory(), policy=policy, kv_cache=kv_cache, **SETTINGS) as llm:
                assert f"{policy}/" in llm.numerics_id or f"{policy}-kv_" in llm.numerics_id
                found[kv_cache] = compare(llm, exact, written, lambda stage, done, total: None).kl_mean.value
    assert {name for name, value in found.items() if value > KL_BOUNDS[name]} == set(), found
    assert found["bf16"] <= found["int8"] <= found["fp8"] <= found["int4"], "more bits cost less"
