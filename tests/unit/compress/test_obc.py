# SPDX-License-Identifier: Apache-2.0
"""Optimal Brain Compression against the textbook's loop over one row, and as the yardstick of GPTQ."""

import numpy as np
import pytest
import torch
from walking import FEW

from linnet.compress import compress, make_recipe
from linnet.compress.algorithm import Fitted
from linnet.compress.statistic import Hessian
from linnet.compress.tables import make_algorithm
from linnet.errors import ConfigError
from linnet.schemes import codecs
from linnet.schemes.presets import parse_scheme

ROWS, COLUMNS = 16, 64


def layer(seed: int) -> tuple[torch.Tensor, Hessian]:
    """A weight and the Hessian of correlated inputs, some of them loud."""
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(COLUMNS, COLUMNS, generator=generator) / COLUMNS**0.5 + 0.5 * torch.eye(COLUMNS)
    loudness = torch.exp(torch.randn(COLUMNS, generator=generator))
    hessian = Hessian(COLUMNS)
    hessian.add((torch.randn(400, COLUMNS, generator=generator) @ mixing) * loudness)
    return torch.randn(ROWS, COLUMNS, generator=generator) * 0.05, hessian


def fit(name: str, weight: torch.Tensor, hessian: Hessian, scheme: str, **options) -> Fitted:
    algorithm = make_algorithm("quantise", name, options)
    return algorithm.fit("m", weight.clone(), parse_scheme(scheme).linear, {"hessian": hessian}, lambda _: None)


def objective(fitted: Fitted, weight: torch.Tensor, hessian: Hessian) -> float:
    return hessian.quadratic(torch.from_numpy(fitted.packed.dequantize()) - weight)


@pytest.mark.parametrize("scheme", ["W4A16-g32", "W3A16", "W2A16-g32", "TERNARY-g32"])
@pytest.mark.parametrize("seed", range(5))
def test_no_order_is_better_and_none_is_worse_than_rounding(scheme, seed):
    weight, hessian = layer(seed)
    errors = [objective(fit(name, weight, hessian, scheme), weight, hessian) for name in ("obc", "gptq", "rtn")]
    assert errors[0] <= errors[1] * (1 + 1e-4)  # float64 beside float32
    assert errors[1] < errors[2]


@pytest.mark.parametrize("scheme", ["W4A16-g32", "TERNARY-g32"])
@pytest.mark.parametrize("seed", range(3))
def test_the_dearest_first_loses_less_than_the_cheapest_first(scheme, seed):
    weight, hessian = layer(seed)
    errors = [
        objective(fitted, weight, hessian)
        for fitted in (
            fit("obc", weight, hessian, scheme, order="dearest"),
            fit("obc", weight, hessian, scheme, order="cheapest"),
            fit("rtn", weight, hessian, scheme),
        )
    ]
    assert errors == sorted(errors)


@pytest.mark.parametrize("order", ["cheapest", "dearest"])
def test_equals_the_textbook(order):
    """One row at a time, the inverse of what is free computed anew at every step."""
    weight, hessian = layer(0)
    scheme = parse_scheme("W4A16-g32").linear
    packed = fit("obc", weight, hessian, "W4A16-g32", order=order).packed
    scale = np.repeat(packed.scales().astype(np.float64), 32, axis=1)
    h = hessian.matrix("m").double().numpy()
    h += 0.01 * np.diagonal(h).mean() * np.eye(COLUMNS)
    low, high = codecs.code_range(scheme.weight)
    for row in range(3):
        w, free, codes = weight[row].double().numpy(), list(range(COLUMNS)), np.zeros(COLUMNS)
        while free:
            inverse = np.linalg.inv(h[np.ix_(free, free)])
            nearest = np.clip(np.rint(w / scale[row]), low, high)
            wrong = w - nearest * scale[row]
            cost = wrong[free] ** 2 / np.diagonal(inverse)
            place = int(np.argmin(cost) if order == "cheapest" else np.argmax(cost))
            chosen = free[place]
            codes[chosen] = nearest[chosen]
            w[free] -= wrong[chosen] / inverse[place, place] * inverse[place]
            free.remove(chosen)
        assert (packed.codes()[row] == codes).mean() > 0.95  # a tie may fall the other way


@pytest.mark.parametrize("scheme", ["W4A16-g16-asym", "NF4-g32", "FP8", "W8A16"])
def test_every_kind_of_code_reports_its_error(scheme):
    weight, hessian = layer(7)
    fitted = fit("obc", weight, hessian, scheme)
    error = objective(fitted, weight, hessian)
    assert fitted.output_error == pytest.approx(error / hessian.quadratic(weight), rel=1e-3)
    assert error <= objective(fit("rtn", weight, hessian, scheme), weight, hessian)


def test_dead_inputs_and_bad_options():
    weight, _ = layer(0)
    nothing = Hessian(COLUMNS)
    nothing.add(torch.zeros(4, COLUMNS))
    assert fit("obc", weight, nothing, "W4A16-g32").output_error == 0
    with pytest.raises(ConfigError, match=r"damping of obc is 2\.0; accepted is above 0 and at most 1"):
        make_algorithm("quantise", "obc", {"damping": 2.0})


def test_a_model_loses_less_in_every_layer_than_by_gptq(tiny_model, text, tmp_path):
    """Of the first block's first linears, which read the same rows in both."""
    found = {
        name: compress(tiny_model, tmp_path / name, make_recipe("W4A16-g16", name, **FEW), calibration_text=text).layers
        for name in ("obc", "gptq")
    }
    for name in ("q_proj", "k_proj", "v_proj"):
        module = f"model.layers.0.self_attn.{name}"
        assert found["obc"][module]["output_error"] <= found["gptq"][module]["output_error"] * 1.001
