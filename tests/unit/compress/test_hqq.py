# SPDX-License-Identifier: Apache-2.0
"""HQQ: less |error|^p than rounding in every granularity, outliers forgiven, codes as the codecs make them."""

import numpy as np
import pytest
import torch

from linnet.compress import compress, make_recipe
from linnet.compress.algorithm import Fitted
from linnet.compress.tables import make_algorithm
from linnet.errors import CheckpointError, ConfigError
from linnet.schemes import codecs
from linnet.schemes.presets import parse_scheme
from linnet.schemes.scheme import LinearScheme, Scheme


def weight(seed: int = 0) -> torch.Tensor:
    """Gaussian, a few outliers."""
    generator = torch.Generator().manual_seed(seed)
    values = torch.randn(48, 128, generator=generator) * 0.02
    return torch.where(torch.rand(48, 128, generator=generator) < 0.01, values * 6, values)


def fit(name: str, w: torch.Tensor, scheme: LinearScheme, **options) -> Fitted:
    return make_algorithm("quantise", name, options).fit("m", w.clone(), scheme, {}, lambda _: None)


def norm(fitted: Fitted, w: torch.Tensor, p: float = 0.7) -> float:
    return float((torch.from_numpy(fitted.packed.dequantize()) - w).abs().pow(p).sum())


BLOCKS = LinearScheme(Scheme("int4", "block", block=(32, 40)))
TENSOR = LinearScheme(Scheme("int4", "tensor"))
NAMES = ["W4A16-g32", "W3A16-g32-asym", "W4A16-channel", "W2A16-g32", "NF4-g32", "FP8", "TERNARY-g32"]


@pytest.mark.parametrize("scheme", [*(parse_scheme(name).linear for name in NAMES), BLOCKS, TENSOR], ids=str)
def test_loses_less_of_its_norm_than_rounding(scheme):
    w = weight()
    fitted = fit("hqq", w, scheme)
    assert norm(fitted, w) < norm(fit("rtn", w, scheme), w)
    packed = fitted.packed
    assert (packed.codes() == codecs.quantize(w.numpy(), scheme.weight, packed.scales(), packed.zero_points())).all()


@pytest.mark.parametrize("scheme", ["W4A16-g64", "W3A16-g64-asym"])
def test_forgives_outliers(scheme):
    """The median error falls below that of the scales with the least squared error."""
    w, linear = weight(1), parse_scheme(scheme).linear
    errors = [
        float((torch.from_numpy(fitted.packed.dequantize()) - w).abs().median())
        for fitted in (fit("hqq", w, linear), fit("rtn", w, linear, scales="mse"))
    ]
    assert errors[0] < errors[1]


def test_the_zero_point_moves():
    w = weight(2) + 0.03
    linear = parse_scheme("W3A16-g32-asym").linear
    found, rounded = (fit(name, w, linear).packed.zero_points() for name in ("hqq", "rtn"))
    assert found is not None
    assert rounded is not None
    assert (found != rounded).any()


def test_what_is_exact_stays_exact():
    codes = np.random.default_rng(0).integers(-8, 8, (16, 64))
    codes[:, ::32] = -8
    w = torch.from_numpy((codes * 0.25).astype(np.float32))
    assert fit("hqq", w, parse_scheme("W4A16-g32").linear).weight_error == 0
    nothing = torch.zeros(4, 64)
    assert fit("hqq", nothing, parse_scheme("W4A16-g32-asym").linear).weight_error == 0


def test_bad_weights_and_options_are_named():
    w = weight()
    w[0, 0] = float("nan")
    with pytest.raises(CheckpointError, match="NaN or infinity"):
        fit("hqq", w, parse_scheme("W4A16-g32").linear)
    with pytest.raises(ConfigError, match=r"p of hqq is 1\.0; accepted is above 0 and below 1"):
        make_algorithm("quantise", "hqq", {"p": 1.0})
    with pytest.raises(ConfigError, match="iterations of hqq is 0; accepted is 1 to 1000"):
        make_algorithm("quantise", "hqq", {"iterations": 0})
    with pytest.raises(ConfigError, match=r"beta of hqq is 0\.0; accepted is above 0"):
        make_algorithm("quantise", "hqq", {"beta": 0.0})


def test_a_model_without_rows(tiny_model, tmp_path):
    result = compress(tiny_model, tmp_path / "out", make_recipe("W4A16-g16-asym", "hqq"))
    plain = compress(tiny_model, tmp_path / "plain", make_recipe("W4A16-g16-asym", "rtn"))
    assert result.manifest["record"]["calibration"] is None
    errors = [
        sum(layer["weight_error"] for layer in found.layers.values() if layer["algorithm"] in ("hqq", "rtn"))
        for found in (result, plain)
    ]
    assert errors[0] < errors[1]
