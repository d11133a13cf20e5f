# SPDX-License-Identifier: Apache-2.0
"""GPTQ against the textbook loop, and its laws: better than rounding, exact codes, canonical layout."""

import numpy as np
import pytest
import torch

from linnet.compress.algorithm import Fitted
from linnet.compress.algorithms.gptq import Gptq, GptqOptions
from linnet.compress.algorithms.rtn import Rtn, RtnOptions
from linnet.compress.factor import most_active_groups_first
from linnet.compress.statistic import Hessian
from linnet.compress.tables import make_algorithm
from linnet.errors import CheckpointError, ConfigError
from linnet.schemes import codecs
from linnet.schemes.presets import parse_scheme

ROWS, COLUMNS, SAMPLES = 24, 160, 600


def inputs(columns: int = COLUMNS, seed: int = 0) -> torch.Tensor:
    """Correlated rows with a few loud columns, as activations are."""
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(columns, columns, generator=generator) / columns**0.5
    loudness = torch.exp(torch.randn(columns, generator=generator))
    return (torch.randn(SAMPLES, columns, generator=generator) @ (mixing + 0.5 * torch.eye(columns))) * loudness


def weight(columns: int = COLUMNS) -> torch.Tensor:
    return torch.randn(ROWS, columns, generator=torch.Generator().manual_seed(1)) * 0.05


def hessian_of(x: torch.Tensor) -> Hessian:
    result = Hessian(x.shape[1])
    result.add(x)
    return result


def fit(x: torch.Tensor, w: torch.Tensor, scheme: str, **options) -> Fitted:
    statistics = {"hessian": hessian_of(x)}
    return Gptq(GptqOptions(**options)).fit("m", w.clone(), parse_scheme(scheme).linear, statistics, lambda _: None)


def output_error(result: Fitted, x: torch.Tensor, w: torch.Tensor) -> float:
    approximation = torch.from_numpy(result.packed.dequantize()).double()
    exact = x.double() @ w.double().T
    return float((x.double() @ approximation.T - exact).square().sum() / exact.square().sum())


def textbook(x: torch.Tensor, w: torch.Tensor, bits: int, group: int) -> np.ndarray:
    """Optimal brain quantisation, column by column with the inverse Hessian itself, float64, min-max scales."""
    h = (x.T @ x).double()
    h += torch.eye(len(h)) * 0.01 * torch.diagonal(h).mean()
    inverse, w = torch.linalg.inv(h), w.double().clone()
    for j in range(w.shape[1]):
        if j % group == 0:
            scale = w[:, j : j + group].abs().amax(1) / ((2**bits - 1) / 2)
            scale = scale.to(torch.bfloat16).double()
        q = torch.clamp(torch.round(w[:, j] / scale), -(2 ** (bits - 1)), 2 ** (bits - 1) - 1) * scale
        error = (w[:, j] - q) / inverse[0, 0]
        w[:, j] = q
        w[:, j + 1 :] -= torch.outer(error, inverse[0, 1:])
        inverse = (inverse - torch.outer(inverse[:, 0], inverse[0]) / inverse[0, 0])[1:, 1:]
    return w.numpy()


def test_equals_the_textbook():
    x, w = inputs(), weight()
    ours = fit(x, w, "W4A16-g32", scales="minmax", act_order=False).packed.dequantize()
    expected = textbook(x, w, 4, 32)
    assert (np.abs(ours - expected) < 1e-6).mean() > 0.99  # fp32 against fp64: a tie may fall the other way
    reference = x.double() @ w.double().T
    errors = [float((x.double() @ torch.from_numpy(q).double().T - reference).square().sum()) for q in (ours, expected)]
    assert errors[0] == pytest.approx(errors[1], rel=0.02)


@pytest.mark.parametrize("scheme", ["W4A16-g32", "W3A16-g32", "W4A16-g32-asym"])
def test_groups_by_activity_are_groups_of_columns_that_lie_so(scheme):
    x, w = inputs(), weight()
    order = most_active_groups_first(x.square().sum(0), 32)
    assert order.sort().values.tolist() == list(range(COLUMNS))
    assert order.tolist() != list(range(COLUMNS))
    assert all(len({int(c) // 32 for c in order[first : first + 32]}) == 1 for first in range(0, COLUMNS, 32))
    ours = fit(x, w, scheme, act_order="groups").packed.dequantize()
    moved = fit(x[:, order], w[:, order], scheme, act_order=False).packed.dequantize()
    assert (np.abs(ours[:, order.numpy()] - moved) < 1e-6).mean() > 0.99  # sums in another order: a tie may turn


@pytest.mark.parametrize(
    "scheme",
    [
        "W4A16-g32",
        "W4A16-g16-asym",
        "W3A16-g80",
        "W2A16",
        "W8A16",
        "W4A16-channel",
        "NF4-g32",
        "FP8",
        "TERNARY-g32",
        "TERNARY",
    ],
)
@pytest.mark.parametrize("options", [{}, {"act_order": False}, {"act_order": "groups"}, {"scales": "minmax"}], ids=str)
def test_beats_rounding_and_reports_its_error(scheme, options):
    x, w = inputs(), weight()
    linear = parse_scheme(scheme).linear
    rounded = Rtn(RtnOptions()).fit("m", w.clone(), linear, {}, lambda _: None)
    result = fit(x, w, scheme, **options)
    assert result.output_error == pytest.approx(output_error(result, x, w), rel=0.02, abs=1e-7)
    if (scheme, options) != ("W2A16", {"scales": "minmax"}):  # the range of two bits is too wide to move errors into
        assert result.output_error < output_error(rounded, x, w) * (0.9 if scheme != "FP8" else 1.0)
    assert result.packed.scheme == linear
    approximation = torch.from_numpy(result.packed.dequantize())
    assert result.weight_error == pytest.approx(float((approximation - w).square().sum() / w.square().sum()), rel=1e-3)


def test_rounding_is_the_codecs_bit_for_bit():
    w = weight()
    packed = Rtn(RtnOptions()).fit("m", w.clone(), parse_scheme("W4A16-g32").linear, {}, lambda _: None).packed
    scheme = parse_scheme("W4A16-g32").linear.weight
    assert (packed.codes() == codecs.quantize(w.numpy(), scheme)).all()


def test_without_correlation_gptq_is_rounding():
    w, hessian = weight(), Hessian(COLUMNS)
    hessian.add(torch.eye(COLUMNS))
    linear = parse_scheme("W4A16-g32").linear
    result = Gptq(GptqOptions(scales="minmax")).fit("m", w.clone(), linear, {"hessian": hessian}, lambda _: None)
    rounded = Rtn(RtnOptions()).fit("m", w.clone(), linear, {}, lambda _: None)
    assert (result.packed.codes() == rounded.packed.codes()).all()


def test_mse_scales_reduce_the_error_of_rounding():
    w, linear = weight(), parse_scheme("W3A16-g32").linear
    plain, searched = (
        Rtn(RtnOptions(scales=scales)).fit("m", w.clone(), linear, {}, lambda _: None) for scales in ("minmax", "mse")
    )
    assert searched.weight_error < plain.weight_error


def test_dead_and_dependent_inputs():
    x, w = inputs(), weight()
    x[:, 5] = x[:, 45] = 0
    x[:, 40:80] = x[:, :40]  # singular
    result = fit(x, w, "W4A16-g32")
    assert result.notes["dead_inputs"] == 2
    assert result.output_error is not None
    assert result.output_error < 0.01
    nothing = Hessian(COLUMNS)
    nothing.add(torch.zeros(8, COLUMNS))
    linear = parse_scheme("W4A16-g32").linear
    zero = Gptq(GptqOptions(scales="minmax")).fit("m", w.clone(), linear, {"hessian": nothing}, lambda _: None)
    rounded = Rtn(RtnOptions()).fit("m", w.clone(), linear, {}, lambda _: None)
    assert (zero.packed.codes() == rounded.packed.codes()).all()
    assert zero.output_error == 0


@pytest.mark.parametrize("options", [{}, {"act_order": False}, {"act_order": "groups"}], ids=str)
def test_what_no_row_hears_is_no_output_error(options):
    x, w = inputs(), weight()
    x[:, ::2] = 0
    result = fit(x, w, "W4A16-g32", **options)
    assert result.notes["dead_inputs"] == COLUMNS // 2
    assert result.output_error == pytest.approx(output_error(result, x, w), rel=0.02)


def test_damping_rises_until_the_hessian_factorises():
    x, w = inputs(), weight()
    hessian = hessian_of(x)
    torch.diagonal(hessian._upper)[:] *= 0.97  # no longer positive definite
    options = GptqOptions(damping=1e-6)
    fitted = Gptq(options).fit("m", w, parse_scheme("W4A16-g32").linear, {"hessian": hessian}, lambda _: None)
    assert fitted.notes["damping"] > 1e-6


def test_statistics_merge_and_do_not_depend_on_it_being_asked():
    x = inputs()
    parts = [hessian_of(part) for part in x.split(200)]
    for part in parts[1:]:
        parts[0].merge(part)
    whole = hessian_of(x)
    assert parts[0].rows == whole.rows == SAMPLES
    assert torch.allclose(parts[0].matrix("m"), whole.matrix("m"), rtol=1e-4, atol=1e-2)
    assert torch.allclose(whole.matrix("m"), x.T @ x, rtol=1e-4, atol=1e-2)
    w = weight()
    assert whole.quadratic(w) == pytest.approx(float((x @ w.T).square().sum()), rel=1e-4)
    many = w.repeat(-(-5000 // len(w)), 1)  # several slices
    assert whole.quadratic(many) == pytest.approx(float((x @ many.T).square().sum()), rel=1e-4)


def test_not_a_number_is_named():
    """In the rows; a weight is asked before any fit (test_sound.py)."""
    x = inputs()
    x[3, 7] = float("nan")
    with pytest.raises(CheckpointError, match=r"layers.0 read"):
        hessian_of(x).matrix("layers.0")


@pytest.mark.parametrize("scheme", ["TERNARY-g32", "TERNARY", "W2A16-g32"])
@pytest.mark.parametrize("seed", range(6))
def test_coarse_codes_gain_on_the_objective_and_stay_near_the_weights(scheme, seed):
    """Less error than rounding on every seed; by default not at the price of far weights."""
    x, w = inputs(64, seed), weight(64)
    rounded = Rtn(RtnOptions(scales="mse")).fit("m", w.clone(), parse_scheme(scheme).linear, {}, lambda _: None)
    near, far = fit(x, w, scheme), fit(x, w, scheme, damping=0.01, act_order=True)
    assert output_error(near, x, w) < output_error(rounded, x, w)
    assert rounded.weight_error < near.weight_error < far.weight_error
    assert near.notes["damping"] == 0.1
    assert far.notes["damping"] == 0.01


def test_options_are_checked_and_list_what_is_known():
    assert isinstance(make_algorithm("quantise", "gptq", {"act_order": True}), Gptq)
    with pytest.raises(ConfigError, match="accepted: rtn, gptq"):
        make_algorithm("quantise", "magic", {})
    with pytest.raises(ConfigError, match="known keys: damping, act_order, scales"):
        make_algorithm("quantise", "gptq", {"dampening": 1})
    with pytest.raises(ConfigError, match=r"damping of gptq is 0\.0; accepted is above 0 and at most 1"):
        make_algorithm("quantise", "gptq", {"damping": 0})
