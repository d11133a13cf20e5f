# SPDX-License-Identifier: Apache-2.0
"""R17: what lm-eval computes through ``local-completions`` is what transformers computes in its own process.

The requests are those of lm-eval's TemplateAPI: token ids of context and continuation, ``echo``, ``logprobs: 1``, one
new token; and so is what it reads of the answers. LINNET_PARITY_SAMPLES: how many (200).
"""

import json
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from serving import NAME, Running

from linnet.api import LLM
from linnet.demo import model_directory, questions_file

torch = pytest.importorskip("torch", reason="transformers is the other side of the comparison")
transformers = pytest.importorskip("transformers", reason="it is the other side of the comparison")

SAMPLES = int(os.environ.get("LINNET_PARITY_SAMPLES", "200"))


@pytest.fixture(scope="module")
def server() -> Iterator[Running]:
    with LLM(model_directory(), policy="exact") as llm, Running(llm) as running:
        yield running
        running.wait_settled()


def samples(server: Running) -> list[tuple[list[int], list[int]]]:
    """Context and continuation, as lm-eval splits them."""
    found = []
    encode = server.llm.tokenizer.encode
    for line in questions_file().read_text(encoding="utf-8").splitlines():
        question = json.loads(line)
        for choice in question.get("choices", ()):
            context = encode(question["prompt"])
            whole = encode(question["prompt"] + choice)
            found.append((whole[: len(context)], whole[len(context) :]))
    step = max(len(found) // SAMPLES, 1)
    return [one for one in found[::step] if one[0] and one[1]][:SAMPLES]


def over_http(server: Running, context: list[int], continuation: list[int]) -> tuple[float, bool]:
    """lm-eval's ``parse_logprobs``: the sum over the continuation, and whether each token is the likeliest."""
    body = {"model": NAME, "prompt": context + continuation, "max_tokens": 1, "temperature": 0, "logprobs": 1,
            "echo": True, "seed": 1234}  # fmt: skip
    answer = server.http.post("/v1/completions", json=body)
    assert answer.status_code == 200, answer.text
    found: dict[str, Any] = answer.json()["choices"][0]["logprobs"]
    total = sum(found["token_logprobs"][len(context) : -1])
    pairs = zip(found["token_logprobs"][len(context) : -1], found["top_logprobs"][len(context) : -1], strict=True)
    return total, all(own == max(top.values()) for own, top in pairs)


def test_every_sample_has_the_log_likelihood_of_transformers(server: Running) -> None:
    asked = samples(server)
    assert len(asked) == SAMPLES
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda one: over_http(server, *one), asked))
    model = transformers.AutoModelForCausalLM.from_pretrained(model_directory(), dtype=torch.float32).eval()
    worst, likeliest = 0.0, 0
    for (context, continuation), (total, greedy) in zip(asked, found, strict=True):
        with torch.inference_mode():
            logits = model(torch.tensor([context + continuation])).logits[0, len(context) - 1 : -1]
        logprobs = torch.log_softmax(logits, -1)
        expected = float(logprobs[range(len(continuation)), continuation].sum())
        worst = max(worst, abs(expected - total))
        assert greedy == bool((logprobs.argmax(-1) == torch.tensor(continuation)).all())
        likeliest += greedy
    print(f"{SAMPLES} samples: largest difference {worst:.1e}, {likeliest} greedy")
    assert worst <= 1e-3
    assert 0 < likeliest < SAMPLES
