# SPDX-License-Identifier: Apache-2.0
"""Every scheme end to end: compress the bundled model, reload, bound the loss, serve, compare with offline tokens.

One small YAML file a case in ``cases/``: scheme, algorithm, pattern of zeros, the KL it may cost (nats per token, mean,
on held-out text) and its bytes as a share of the original's.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import yaml
from serving import NAME, Running

pytest.importorskip("torch", reason="compressing needs torch")

from linnet import demo
from linnet.api import LLM, SamplingParams
from linnet.cli.evaluating import heldout_text
from linnet.compress import Recipe, compress, make_recipe, recipe_from
from linnet.evals.text_loss import compare

CASES = sorted(Path(__file__).with_name("cases").glob("*.yaml"))
TOKENS = 2048
PROMPTS = ["Once upon a time", "The baker of the town", "In the morning"]


@dataclass(frozen=True)
class Case:
    """One YAML file."""

    kl_at_most: float
    bytes_at_most: float
    scheme: str | None = None
    algorithm: str = "gptq"
    options: Mapping[str, Any] = field(default_factory=dict)
    pattern: str | None = None
    """What is pruned before, by SparseGPT."""

    def recipe(self) -> Recipe:
        """A recipe of version 1 where that has the words."""
        few = {"calibration_rows": 16, "calibration_length": 256}
        if self.pattern is None:
            assert self.scheme is not None
            return make_recipe(self.scheme, self.algorithm, options=dict(self.options), **few)
        steps = [{"step": "sparsify", "algorithm": "sparsegpt", "options": {"pattern": self.pattern}}]
        if self.scheme is not None:
            steps.append({"step": "quantise", "algorithm": self.algorithm, "scheme": self.scheme})
        return recipe_from({"steps": steps, **few})


@pytest.mark.parametrize("path", CASES, ids=lambda path: path.stem)
def test_case(path: Path, tmp_path: Path) -> None:
    case = Case(**yaml.safe_load(path.read_text(encoding="utf-8")))
    original, compressed = demo.model_directory(), tmp_path / path.stem
    compress(original, compressed, case.recipe())
    settings = {"kv_bytes": 32 * 2**20, "max_model_len": 512}
    with LLM(original, **settings) as reference, LLM(compressed, **settings) as candidate:
        assert candidate.checkpoint.nbytes <= case.bytes_at_most * reference.checkpoint.nbytes
        cut = heldout_text().cut(reference, 512, 256, TOKENS)
        loss = compare(candidate, reference, cut, lambda stage, done, total: None)
        assert 0 < loss.kl_mean.value <= case.kl_at_most
        offline = candidate.generate(PROMPTS, SamplingParams(temperature=0.0, max_tokens=24))
    with Running(LLM(compressed, **settings)) as server:
        answer = server.openai().completions.create(model=NAME, prompt=PROMPTS, temperature=0.0, max_tokens=24)
    assert [choice.text for choice in answer.choices] == [output.outputs[0].text for output in offline]
