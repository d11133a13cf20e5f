# SPDX-License-Identifier: Apache-2.0
"""AutoRound: gradients as the paper's, rows nearer to the dense model's than by GPTQ, the same bytes every time."""

import numpy as np
import pytest
import torch
from walking import FEW, StopAt, hashes, value_of

from linnet.compress import CancelToken, Interrupted, compress, make_recipe
from linnet.compress.algorithms.autoround import LearnedRounding
from linnet.compress.reading import recipe_from
from linnet.compress.statistic import RowSample
from linnet.compress.steps import build_steps
from linnet.compress.tables import make_algorithm
from linnet.errors import ConfigError
from linnet.models.load import load_model
from linnet.schemes.presets import parse_scheme
from linnet.schemes.scheme import LinearScheme, Scheme

OPTIONS = {"iterations": 40, "batch": 2}


def learned(scheme: LinearScheme, samples: int = 64) -> tuple[LearnedRounding, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    sample, weight = RowSample(64), torch.randn(24, 64, generator=generator) * 0.1
    sample.add(torch.randn(samples, 64, generator=generator))
    return LearnedRounding(weight, scheme, {"sample": sample}), weight


SCHEMES = [
    *(parse_scheme(name).linear for name in ("W4A16-g32", "W3A16-g16-asym", "W2A16", "NF4-g32", "FP8", "TERNARY-g32")),
    LinearScheme(Scheme("int4", "block", block=(10, 24))),
    LinearScheme(Scheme("int4", "tensor")),
]


@pytest.mark.parametrize("scheme", SCHEMES, ids=str)
def test_what_is_run_is_what_is_packed(scheme):
    rounding, weight = learned(scheme)
    target = torch.randn(weight.shape, generator=torch.Generator().manual_seed(1))
    for _ in range(5):
        rounding.descend(target, 0.05)
    run = rounding.weight()
    packed = rounding.fitted({}).packed
    assert torch.allclose(run, torch.from_numpy(packed.dequantize()), atol=1e-6)
    before = learned(scheme)[0].fitted({}).packed.dequantize()
    assert (before != packed.dequantize()).any()
    rounding.go_back()
    assert (rounding.fitted({}).packed.dequantize() == before).all()


@pytest.mark.parametrize("sign", [1, -1])
def test_gradients_are_the_papers(sign):
    """Of one weight inside the range and one that is clipped, computed by hand; scale 1 or -1, codes -8 to 7."""
    weight = sign * torch.tensor([[7.5, 2.3] + [0.0] * 30])
    rounding = LearnedRounding(
        weight, LinearScheme(Scheme("int4", "channel", scale_dtype="fp32")), {"sample": RowSample(32)}
    )
    with torch.no_grad():
        rounding._upper.fill_(1.0)
        rounding._lower.fill_(1.0)
    rounding._sign[:] = sign
    assert rounding.weight()[0, :2].tolist() == [sign * 7.0, sign * 2.0]
    rounding._differentiate(torch.ones(weight.shape))
    assert rounding._offsets.grad is not None
    assert rounding._offsets.grad[0, :3].tolist() == [0.0, sign, sign]  # the scale; nothing beyond the range
    # d(scale * code)/d(scale): the clipped code itself, and code - weight / scale; the scale is +-share * 7.5 / 7.5
    share = rounding._upper if sign == 1 else rounding._lower
    assert share.grad is not None
    assert share.grad.item() == pytest.approx(sign * (7 + (2 - 2.3)), abs=1e-5)


def test_a_scale_takes_the_sign_that_loses_less():
    """Codes of two bits go from -2 to 1: a group with one far end has it at -2, whichever side that is."""
    weight = torch.tensor([[3.0, 1.0, -1.0, 0.2] * 8, [-3.0, -1.0, 1.0, -0.2] * 8])
    scheme = LinearScheme(Scheme("int2", "group", group_size=32))
    scale = LearnedRounding(weight, scheme, {"sample": RowSample(32)}).fitted({}).packed.scales()
    assert np.sign(scale.astype(np.float32)).ravel().tolist() == [-1, 1]


@pytest.mark.parametrize("scheme", ["W3A16-g16", "W2A16-g16"])
def test_rows_are_nearer_to_the_dense_models_than_by_gptq(tiny_model, text, tmp_path, scheme):
    """Behind every block, on tokens that nobody calibrated on."""
    settings = {"calibration_rows": 8, "calibration_length": 64}
    ids, errors = np.random.default_rng(0).integers(1, 60, (4, 64)).astype(np.int32), {}
    names = [segment.outputs[0] for segment in load_model(tiny_model).program.segments if segment.kind == "block"]
    dense = [value_of(tiny_model, name, ids) for name in names]
    for name, options in (("gptq", {}), ("autoround", {"iterations": 150})):
        recipe = make_recipe(scheme, name, options=options, **settings)
        result = compress(tiny_model, tmp_path / name, recipe, calibration_text=text)
        found = (value_of(result.path, value, ids) - aim for value, aim in zip(names, dense, strict=True))
        errors[name] = [float(each.square().sum()) for each in found]
    assert np.all(np.array(errors["autoround"]) <= errors["gptq"]), errors


def test_interrupted_or_repeated_it_is_the_same(tiny_model, text, tmp_path):
    recipe = make_recipe("W3A16-g16-asym", "autoround", options=OPTIONS, **FEW)
    whole = compress(tiny_model, tmp_path / "whole", recipe, calibration_text=text)
    best = {layer["best_iteration"] for name, layer in whole.layers.items() if ".layers." in name}
    assert max(best) > 0
    token = CancelToken()
    stop = StopAt(token, 60)
    with pytest.raises(Interrupted):
        compress(tiny_model, tmp_path / "again", recipe, calibration_text=text, cancel=token, observer=stop)
    again = compress(tiny_model, tmp_path / "again", recipe, calibration_text=text)
    assert again.resumed
    assert hashes(whole.path) == hashes(again.path)


def test_heads_and_rules(tiny_model, text, tmp_path):
    """A head is no block and gets its codes by rounding; a rule may keep a module dense or give it a scheme."""
    rules = [{"match": "re:.*v_proj", "scheme": "dense"}, {"match": "re:.*down_proj", "scheme": "W8A16"}]
    recipe = make_recipe("W4A16-g16-head8", "autoround", options=OPTIONS, rules=rules, **FEW)
    layers = compress(tiny_model, tmp_path / "out", recipe, calibration_text=text).layers
    assert "lm_head" in layers
    assert not any("v_proj" in name for name in layers)


def test_options_are_checked():
    with pytest.raises(ConfigError, match="iterations of autoround is 0; accepted is 1 to 100000"):
        make_algorithm("quantise", "autoround", {"iterations": 0})
    step = {"step": "quantise", "algorithm": "autoround", "scheme": "W4A16"}
    recipe = recipe_from({"steps": [step | {"rules": [{"match": "a", "options": {"batch": 1}}]}]})
    with pytest.raises(ConfigError, match="autoround fits a whole block at once; a rule may give it a scheme"):
        build_steps(recipe)
