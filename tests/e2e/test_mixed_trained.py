# SPDX-License-Identifier: Apache-2.0
"""On trained models: a mixture of bits is never worse than one scheme everywhere of the same bytes, and more bytes
always buy something. KL is measured by linnet.evals on documents that nobody calibrated on.

What is noise here. Arithmetic is exact and the engine deterministic, so a model against itself has a KL of 0
(asserted), and a candidate costs the same every time. What remains is which documents were asked: both candidates read
the same ones, so the interval is one of the *difference*, over documents (evals.statistics). Worse is a difference
whose interval lies above 0; a mixture whose sensitivities were dealt to the wrong linears is found to be that.
"""

import lzma
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from test_compress_trained import SHARED, need

from linnet import demo
from linnet.api import LLM
from linnet.compress import Recipe, compress, make_recipe, mix
from linnet.evals import EvaluationText
from linnet.evals.statistics import Interval, mean_interval
from linnet.evals.text_loss import Windows
from linnet.text.files import read_corpus

CONTEXT, TOKENS = 256, 8192
EXACT = {"policy": "exact", "max_model_len": CONTEXT, "max_sequences": 4, "num_blocks": 68, "prefix_cache": False}


@dataclass(frozen=True)
class Judge:
    """Measures candidates against the original on the same windows."""

    model: Path
    documents: Sequence[str]

    def kl(self, path: Path) -> list[np.ndarray]:
        """KL(original || candidate) of every token, in nats, one array a window."""
        with LLM(self.model, **EXACT) as original, LLM(path, **EXACT) as candidate:
            windows = self.windows(original)
            found = candidate.compare(original, windows.rows, starts=windows.starts)
        return [np.asarray(each.kl, np.float64) for each in found]

    def windows(self, llm: LLM) -> Windows:
        return EvaluationText("unseen", tuple(self.documents)).cut(llm, CONTEXT, CONTEXT, TOKENS)

    def difference(self, ours: list[np.ndarray], theirs: list[np.ndarray]) -> Interval:
        """Mean KL of one candidate less another's, paired by token, its interval over documents."""
        with LLM(self.model, **EXACT) as original:
            clusters = self.windows(original).clusters
        together: dict[int, list[np.ndarray]] = {}
        for cluster, mine, yours in zip(clusters, ours, theirs, strict=True):
            together.setdefault(cluster, []).append(mine - yours)
        return mean_interval([np.concatenate(parts) for parts in together.values()])


def mean(kl: list[np.ndarray]) -> float:
    return float(np.concatenate(kl).mean())


def mixed_less_uniform(judge: Judge, recipe: Recipe, text: str, work: Path) -> Interval | None:
    """The difference in KL at the bytes of one scheme everywhere; None where that scheme is kept everywhere."""
    uniform = compress(judge.model, work / "uniform", recipe, calibration_text=text)
    plan = mix(judge.model, recipe, lambda _: uniform.output_bytes, calibration_text=text)
    if len(plan.modules) == 1:
        assert (plan.recipe, plan.bytes) == (recipe, uniform.output_bytes)
        return None
    mixed = compress(judge.model, work / "mixed", plan.recipe, calibration_text=text)
    assert mixed.output_bytes == plan.bytes <= uniform.output_bytes
    costs = [judge.kl(path) for path in (mixed.path, uniform.path)]
    difference = judge.difference(*costs)
    print(f"{judge.model.name}: mixed {mean(costs[0]):.5f} uniform {mean(costs[1]):.5f} {difference}; {plan.modules}")
    return difference


def recipe_of(scheme: str) -> Recipe:
    return make_recipe(scheme, "gptq", calibration_rows=32, calibration_length=256)


@pytest.fixture(scope="module")
def town() -> Judge:
    documents = demo.heldout_file().read_text(encoding="utf-8").split(demo.TEXT_SEPARATOR)
    return Judge(demo.model_directory(), documents)


@pytest.fixture(scope="module")
def calibration() -> str:
    return read_corpus(demo.calibration_file())


@pytest.mark.slow
def test_the_original_costs_nothing(town: Judge):
    assert all((each == 0).all() for each in town.kl(town.model))


@pytest.mark.slow
@pytest.mark.parametrize("scheme", ["W2A16-g64", "W3A16-g64", "W4A16-g64"])
def test_mixed_bits_of_the_bundled_model(town: Judge, calibration: str, tmp_path: Path, scheme: str):
    difference = mixed_less_uniform(town, recipe_of(scheme), calibration, tmp_path)
    assert difference is None or difference.low is None or difference.low <= 0


@pytest.mark.slow
def test_mixed_bits_of_novels(tmp_path: Path):
    model = need(SHARED / "models" / "novels7M")
    with lzma.open(need(SHARED / "data" / "text" / "english_novels.txt.xz"), "rt", encoding="utf-8") as file:
        text = file.read(5_000_000)
    unseen = text[4_000_000:]
    judge = Judge(model, [unseen[start : start + 2_000] for start in range(0, len(unseen), len(unseen) // 64)])
    difference = mixed_less_uniform(judge, recipe_of("W3A16-g64"), text[:2_000_000], tmp_path)
    assert difference is None or difference.low is None or difference.low <= 0


@pytest.mark.slow
def test_a_mixture_of_wrong_sensitivities_is_seen(town: Judge, calibration: str, tmp_path: Path, monkeypatch):
    """The control: what a weight of the least sensitive linear costs is said of the most sensitive one, and so on."""
    from linnet.compress import mixed

    def dealt_backwards(source, rows, drawn, wanted, seed, scratch, told):
        found = right(source, rows, drawn, wanted, seed, scratch, told)
        sizes = {each.info.module: each.info.shape[0] * each.info.shape[1] for each in wanted}
        order = sorted(found, key=lambda module: found[module][0] / sizes[module])
        return {
            module: [cost / sizes[other] * sizes[module] for cost in found[other]]
            for module, other in zip(order, reversed(order), strict=True)
        }

    right = mixed.sensitivities
    monkeypatch.setattr(mixed, "sensitivities", dealt_backwards)
    monkeypatch.setattr(mixed, "LEAST_GAIN", 0.0)  # however little it promises
    difference = mixed_less_uniform(town, recipe_of("W3A16-g64"), calibration, tmp_path)
    assert difference is not None
    assert difference.low is not None
    assert difference.low > 0


@pytest.mark.slow
def test_more_bytes_always_buy_something(town: Judge, calibration: str, tmp_path: Path):
    """Beyond the noise, from two bits everywhere to four in steps of equal size: at most of them no scheme everywhere
    uses up the budget, a mixture does."""
    recipe = recipe_of("W3A16-g64")
    ends = mix(town.model, recipe, lambda _: 10**9, calibration_text=calibration).uniform
    costs = []
    for size in np.linspace(ends[0].bytes, ends[2].bytes, 5).astype(int).tolist():
        plan = mix(town.model, recipe, lambda _, size=size: size, calibration_text=calibration)
        result = compress(town.model, tmp_path / str(size), plan.recipe, calibration_text=calibration)
        assert result.output_bytes <= size
        costs.append(town.kl(result.path))
        print(f"{size}: {mean(costs[-1]):.5f} (foreseen {plan.kl:.5f}) {plan.modules}")
    for smaller, larger in pairwise(costs):
        high = town.difference(larger, smaller).high
        assert high is not None
        assert high < 0
