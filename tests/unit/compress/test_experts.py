# SPDX-License-Identifier: Apache-2.0
"""Experts hear the tokens that are sent to them, and no others; those that hear too few are rounded to nearest."""

import logging
from pathlib import Path

import pytest
import torch
from tiny_llama import write_tiny_llama

from linnet.backends.reference.interpreter import run_segment, whole_sequence_inputs
from linnet.backends.reference.weights import to_torch
from linnet.compress import check, compress, make_recipe
from linnet.errors import UnsupportedError
from linnet.models.load import load_model
from linnet.program.traverse import expert_of, tapped

EXPERTS, CHOSEN = 6, 2


@pytest.fixture(scope="module")
def mixture(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two blocks of six experts, of which every token gets two."""
    return write_tiny_llama(tmp_path_factory.mktemp("mixture"), spread=0.2, experts=EXPERTS)


def test_an_experts_rows_are_those_of_its_tokens(mixture: Path) -> None:
    model = load_model(mixture)
    program, segment = model.program, model.program.segments[1]
    declared = {weight.name: weight for weight in program.weights}
    names = {name for op in program.ops[segment.start : segment.stop] for name in op.weights}
    weights = {name: to_torch(model.weight(declared[name].ref)) for name in names}
    infos = [info for info in model.linears() if info.segment == 1 and tapped(info.tap) != info.tap]
    assert len({info.tap for info in infos}) == 2 * EXPERTS
    taps = {info.tap for info in infos}
    heard: dict[str, tuple[torch.Tensor, torch.Tensor]] = {}
    whole: dict[str, torch.Tensor] = {}

    def on_tap(name: str, x: torch.Tensor, tokens: torch.Tensor | None = None) -> None:
        if tokens is None:
            whole[name] = x
        else:
            heard[name] = x, tokens

    hidden = torch.randn(40, model.spec.hidden_size, generator=torch.Generator().manual_seed(0))
    given = whole_sequence_inputs(torch.zeros((2, 20), dtype=torch.int32)) | {segment.inputs[0]: hidden}
    values, ids = {tapped(tap) for tap in taps}, "layers.0.mlp.ids"
    with torch.no_grad():
        run_segment(program, segment, given, None, weights, (*taps, *values, ids), on_tap)
    chosen = whole[ids].int()
    assert heard.keys() == taps
    for tap, (rows, tokens) in heard.items():
        mine = (chosen == expert_of(tap)).nonzero()
        assert torch.equal(tokens, mine[:, 0])
        value = whole[tapped(tap)]
        places = tokens if len(value) == 40 else tokens * CHOSEN + mine[:, 1]
        assert torch.equal(rows, value[places])
    assert sum(len(rows) for rows, _ in heard.values()) == 2 * 40 * CHOSEN


def test_who_hears_too_little_is_rounded_and_named(
    mixture: Path, tmp_path: Path, text: str, caplog: pytest.LogCaptureFixture
) -> None:
    recipe = make_recipe("W4A16-g16", "gptq", calibration_rows=4, calibration_length=48)
    with caplog.at_level(logging.WARNING):
        made = compress(mixture, tmp_path / "few", recipe, calibration_text=text)
    tokens: dict[str, int] = {}
    for module, record in made.layers.items():
        if ".experts." in module:
            tokens[module] = record["tokens"]
            assert record["algorithm"] == ("gptq" if record["tokens"] >= 64 else "rtn"), module
        else:
            assert "tokens" not in record
    for name in ("w1", "w2", "w3"):  # every token is heard by as many experts as it gets
        of_first = (count for module, count in tokens.items() if ".layers.0." in module and module.endswith(name))
        assert sum(of_first) == 4 * 48 * CHOSEN
    few = sum(count < 64 for module, count in tokens.items() if ".layers.0." in module and module.endswith("w1"))
    assert 0 < few < EXPERTS, "some of each, or this test says nothing"
    assert f"layers.0: {few} of {EXPERTS} experts heard fewer than 64 of the calibration tokens" in caplog.text


@pytest.mark.parametrize("algorithm", ["autoround", "llm_int8", "kmeans"])
def test_what_experts_do_not_take_is_refused_before_any_weight_is_read(mixture: Path, algorithm: str) -> None:
    scheme = {"llm_int8": "W8A8", "kmeans": "KMEANS4"}.get(algorithm, "W4A16-g16")
    with pytest.raises(UnsupportedError, match=r"is an expert's; experts get their codes by rtn, hqq, gptq"):
        check(mixture, make_recipe(scheme, algorithm))
