# SPDX-License-Identifier: Apache-2.0
"""What a group of transform_config means, by compressed-tensors' own code."""

import pytest

torch = pytest.importorskip("torch")
transform = pytest.importorskip("compressed_tensors.transform")

from linnet.backends.reference.ops import hadamard  # noqa: E402
from linnet.formats.prescription import Rotation  # noqa: E402
from linnet.formats.transform_record import read_rotations, rotations_to_record  # noqa: E402


@pytest.mark.parametrize(("columns", "size"), [(48, 16), (64, 64), (10, 2)])
def test_the_matrix_is_the_same(columns: int, size: int) -> None:
    """A linear under it computes what it did, and its weight is what ours becomes."""
    model = torch.nn.Sequential()
    model.add_module("down", torch.nn.Linear(columns, 6, bias=False))
    x, before = torch.randn(5, columns), model.down.weight.detach().clone()
    expected = model(x)
    config = rotations_to_record([Rotation(("down",), size=size)])
    transform.apply_transform_config(model, transform.TransformConfig.model_validate(config))
    assert torch.allclose(model.down.weight, hadamard(before, size), atol=1e-6)
    assert set(model.state_dict()) == {"down.weight", "down.input_0_input.weight"}
    assert read_rotations(config, "c")[0].matrices == ("input_0_input.weight",)
    assert torch.allclose(model(x), expected, atol=1e-5)
    assert torch.allclose(hadamard(x, size) @ model.down.weight.T, expected, atol=1e-5)


def test_rotations_of_attention_are_words_there_too() -> None:
    config = rotations_to_record([Rotation(("self_attn",), size=64, of="attention")])
    read = transform.TransformConfig.model_validate(config)
    (scheme,) = read.config_groups.values()
    assert [(item.location, item.targets) for item in scheme.apply] == [
        ("k_cache", ["self_attn"]),
        ("q_attn", ["self_attn"]),
    ]
