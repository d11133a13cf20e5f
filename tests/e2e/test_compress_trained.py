# SPDX-License-Identifier: Apache-2.0
"""On trained models GPTQ must cost less than rounding: in every layer's output and in KL on text it has not seen."""

import lzma
from pathlib import Path

import numpy as np
import pytest
import torch

from linnet.backends.reference.attention import FunctionalMemory
from linnet.backends.reference.interpreter import run_ops, whole_sequence_inputs
from linnet.backends.reference.sampling import score
from linnet.backends.reference.weights import WeightTable
from linnet.compress import compress, make_recipe
from linnet.models.load import load_model
from linnet.text.rows import calibration_rows
from linnet.text.tokenizer import Tokenizer

SHARED = Path(__file__).parents[3] / "shared"


def need(path: Path) -> Path:
    if not path.exists():
        pytest.skip(f"{path} is not on this machine")
    return path


@torch.no_grad()
def logits(path: Path, token_ids: np.ndarray) -> np.ndarray:
    model = load_model(path)
    table, memory = WeightTable(model.program, model), FunctionalMemory.of(model.program)
    inputs = whole_sequence_inputs(torch.from_numpy(token_ids))
    return run_ops(model.program, 0, len(model.program.ops), inputs, ("logits",), table, memory)["logits"].numpy()


def mean_kl(reference: np.ndarray, candidate: np.ndarray) -> float:
    rows = np.arange(len(reference), dtype=np.int32)
    return float(score(candidate, rows, np.zeros(len(rows), np.int32), reference).kl.mean())


def rounded_output_errors(model: Path, recipe, text: str, tmp_path: Path, monkeypatch) -> dict[str, float]:
    """Relative output error per layer that rounding would have made on the very rows GPTQ was fitted on."""
    from linnet.compress.algorithms.gptq import Gptq
    from linnet.schemes.packed_weight import quantize_weight

    errors: dict[str, float] = {}
    fit = Gptq.fit

    def spy(self, where, weight, scheme, statistics, tick, kept):
        hessian = statistics["hessian"]
        rounded = torch.from_numpy(quantize_weight(weight.numpy(), scheme).dequantize())
        errors[where] = hessian.quadratic(rounded - weight) / hessian.quadratic(weight)
        return fit(self, where, weight, scheme, statistics, tick, kept)

    monkeypatch.setattr(Gptq, "fit", spy)
    compress(model, tmp_path / "spied", recipe, calibration_text=text)
    return errors


@pytest.mark.parametrize("scheme", ["W4A16-g32", "W3A16-g32"])
def test_stories(tmp_path, monkeypatch, scheme):
    model = need(SHARED / "models" / "stories260K-hf")
    text = need(SHARED / "data" / "calibration" / "c4_sample.utf8").read_text(encoding="utf-8")
    compare(model, text[:300_000], text[700_000:900_000], scheme, tmp_path, monkeypatch)


@pytest.mark.slow
@pytest.mark.parametrize("scheme", ["W4A16", "W4A16-g32", "W3A16", "W2A16"])
def test_novels(tmp_path, monkeypatch, scheme):
    model = need(SHARED / "models" / "novels7M")
    with lzma.open(need(SHARED / "data" / "text" / "english_novels.txt.xz"), "rt", encoding="utf-8") as file:
        text = file.read(5_000_000)
    compare(model, text[:2_000_000], text[4_000_000:], scheme, tmp_path, monkeypatch)


def compare(model: Path, text: str, unseen: str, scheme: str, tmp_path: Path, monkeypatch) -> None:
    settings = {"calibration_rows": 16, "calibration_length": 256, "group_size": "auto"}
    recipe = make_recipe(scheme, "gptq", **settings)
    rounded = compress(model, tmp_path / "rtn", make_recipe(scheme, "rtn", **settings))
    bound = rounded_output_errors(model, recipe, text, tmp_path, monkeypatch)
    fitted = compress(model, tmp_path / "spied", recipe, calibration_text=text)  # already published: the same
    assert fitted.resumed
    worse = {name: (layer["output_error"], bound[name]) for name, layer in fitted.layers.items()}
    worse = {name: pair for name, pair in worse.items() if pair[0] >= pair[1]}
    assert not worse
    ids = calibration_rows(Tokenizer.from_directory(model), unseen, 8, 256, 1).token_ids
    reference = logits(model, ids)
    costs = [mean_kl(reference, logits(path, ids)) for path in (rounded.path, fitted.path)]
    ratio = np.mean([layer["output_error"] / bound[name] for name, layer in fitted.layers.items()])
    print(f"{model.name} {scheme}: KL rtn {costs[0]:.5f} gptq {costs[1]:.5f}; output error gptq / rtn {ratio:.2f}")
    assert costs[1] < 0.8 * costs[0]
