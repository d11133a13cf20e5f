# SPDX-License-Identifier: Apache-2.0
"""Stages of a block: every dear op runs once, what is carried suffices, and the result is that of the whole block."""

import numpy as np
import torch

from linnet.backends.reference.interpreter import run_segment, whole_sequence_inputs
from linnet.backends.reference.weights import to_torch
from linnet.compress import check, compress, make_recipe
from linnet.compress.rows import CarriedRows
from linnet.compress.stages import carried_bytes, stages_of
from linnet.compress.work import segment_stages
from linnet.formats import Checkpoint
from linnet.models.load import load_model


def _taps(model, index: int) -> set[str]:
    return {info.tap for info in model.linears() if info.segment == index}


def test_each_linear_and_attention_runs_once_and_the_taps_come_in_order(tiny_model):
    model = load_model(tiny_model)
    program, segment = model.program, model.program.segments[1]
    stages = stages_of(program, segment, _taps(model, 1), to_the_end=True)
    assert len(stages) == 5
    assert sorted(tap for stage in stages for tap in stage.taps) == sorted(_taps(model, 1))
    dear = [op.name for op in program.ops[segment.start : segment.stop] if op.kind in ("linear", "attention")]
    ran = [op.name for stage in stages for op in program.ops[stage.start : stage.stop]]
    assert [name for name in ran if name in dear] == dear
    for stage in stages:  # a linear runs only after the tap it reads has been seen
        seen = {tap for earlier in stages[: stages.index(stage)] for tap in earlier.taps}
        assert all(op.inputs[0] in seen for op in program.ops[stage.start : stage.stop] if op.kind == "linear")
    assert stages[-1].outputs == segment.outputs
    assert stages_of(program, segment, (), to_the_end=True)[0].stop == segment.stop
    width = model.spec.hidden_size + 64  # the residual and the widest tap
    assert carried_bytes(program, segment, _taps(model, 1), 100) == 2 * 4 * 100 * width


def test_stages_in_a_row_give_what_the_whole_segment_gives(tiny_model):
    model = load_model(tiny_model)
    program, segment = model.program, model.program.segments[1]
    ids = torch.arange(40, dtype=torch.int32).reshape(2, 20)
    generator = torch.Generator().manual_seed(0)
    given = whole_sequence_inputs(ids)
    hidden = {segment.inputs[0]: torch.randn(40, model.spec.hidden_size, generator=generator)}
    declared = {weight.name: weight for weight in program.weights}
    names = {name for op in program.ops[segment.start : segment.stop] for name in op.weights}
    weights = {name: to_torch(model.weight(declared[name].ref)) for name in names}
    with torch.no_grad():
        whole = run_segment(program, segment, given | hidden, None, weights)
        values = hidden
        for stage in stages_of(program, segment, _taps(model, 1), to_the_end=True):
            part = type(segment)(segment.name, segment.kind, stage.start, stage.stop, stage.inputs, stage.outputs)
            found = run_segment(program, part, given | values, None, weights, stage.taps, lambda *_: None)
            values = found or values
    assert torch.equal(values[segment.outputs[0]], whole[segment.outputs[0]])


def test_documents_of_a_row_do_not_see_each_other(tiny_model):
    """Each gives what it gives as the only one, whatever stands before and behind it."""
    model = load_model(tiny_model)
    program, segment = model.program, model.program.segments[1]
    ids = torch.arange(40, dtype=torch.int32).reshape(2, 20)
    hidden = torch.randn(40, model.spec.hidden_size, generator=torch.Generator().manual_seed(0))
    declared = {weight.name: weight for weight in program.weights}
    names = {name for op in program.ops[segment.start : segment.stop] for name in op.weights}
    weights = {name: to_torch(model.weight(declared[name].ref)) for name in names}

    def outputs(tokens: torch.Tensor, x: torch.Tensor, lengths: list[int] | None) -> torch.Tensor:
        inputs = whole_sequence_inputs(tokens, lengths) | {segment.inputs[0]: x}
        return run_segment(program, segment, inputs, None, weights)[segment.outputs[0]]

    lengths = [7, 13, 1, 19]
    with torch.no_grad():
        together = outputs(ids, hidden, lengths)
        apart = [
            outputs(tokens[None], x, None)
            for tokens, x in zip(ids.reshape(-1).split(lengths), hidden.split(lengths), strict=True)
        ]
        joined = outputs(ids, hidden, None)
    torch.testing.assert_close(together, torch.cat(apart))
    assert (together - joined)[7:20].abs().max() > 1e-3, "else nothing could be told apart"


def test_later_linears_of_a_block_are_fitted_on_what_the_earlier_ones_have_become(tiny_model, tmp_path, text):
    """With o_proj kept dense and not, down_proj's input differs: its fit must see it."""
    fields = {"calibration_rows": 4, "calibration_length": 64}
    rules = [{"match": "re:.*(q|k|v|o|gate|up)_proj", "scheme": "dense"}]
    alone = compress(tiny_model, tmp_path / "a", make_recipe("W2A16-g16", rules=rules, **fields), calibration_text=text)
    after = compress(tiny_model, tmp_path / "b", make_recipe("W2A16-g16", **fields), calibration_text=text)
    module = "model.layers.0.mlp.down_proj"
    first, second = (Checkpoint.open(result.path).linear(module).codes() for result in (alone, after))
    assert (first != second).any()
    assert len(alone.layers) == 2


def test_the_work_is_that_of_the_stages(tiny_model, text):
    job = check(tiny_model, make_recipe("W4A16-g16", calibration_rows=4), text)
    assert [len(segment_stages(job, index)) for index in range(4)] == [0, 5, 4, 0]


def test_carried_rows_alternate_between_two_files(tmp_path):
    rows = CarriedRows(tmp_path)
    first = {"a": torch.randn(6, 3), "b": torch.randn(6, 5)}
    for start in (0, 4):
        rows.write(start, {name: value[start : start + 4] for name, value in first.items()}, 6)
    rows.turn()
    second = {"c": torch.randn(6, 9)}
    for start in (0, 4):  # writing the next while the last is read
        read = rows.read(start, min(start + 4, 6))
        assert all(torch.equal(read[name], first[name][start : start + 4]) for name in first)
        rows.write(start, {"c": second["c"][start : start + 4]}, 6)
    rows.turn()
    assert np.array_equal(rows.read(1, 5)["c"].numpy(), second["c"][1:5].numpy())
    rows.close()
    assert not list(tmp_path.iterdir())
