# SPDX-License-Identifier: Apache-2.0
"""The end of linnet compress: bars, the worst layers, the command on the model card."""

import pytest

from linnet.cli.compressed import bars, told_command

pytest.importorskip("torch", reason="the room of compression needs torch")


def test_bars_are_as_high_as_their_values():
    assert bars([0.0, 0.5, 1.0]) == "▁▅█"
    assert bars([3.0]) == "█"
    assert bars([0.0, 0.0]) == "▁▁"


def test_the_card_tells_the_command_without_places(tmp_path):
    (tmp_path / "my model").mkdir()
    told = told_command(
        ["compress", str(tmp_path / "my model"), "-o", "./out/w4", "--scheme", "W4A16", "--calibration=/home/me/n.txt"]
    )
    assert told == "linnet compress 'my model' -o w4 --scheme W4A16 --calibration=n.txt"
    assert told_command(["compress", "org/name", "--set", "damping=0.1"]) == (
        "linnet compress org/name --set damping=0.1"
    )
    for output in (["-o", "results/acme/w4"], ["-oresults/acme/w4"], ["--output", "results/acme/w4"]):
        assert "acme" not in told_command(["compress", "org/name", *output])  # it need not exist yet
    assert told_command(["compress", "x" * 300]).endswith("x")


def test_the_worst_come_first_and_outputs_before_weights():
    from linnet.compress.worst import worst_modules

    layers = {
        "a": {"weight_error": 0.9},
        "b": {"weight_error": 0.1, "output_error": 0.01},
        "c": {"weight_error": 0.1, "output_error": 0.03, "repair": {"output_error": 0.002}},
    }
    assert [(loss.module, loss.error, loss.of_output) for loss in worst_modules(layers, 5)] == [
        ("b", 0.01, True),
        ("c", 0.002, True),
    ]
    assert [loss.module for loss in worst_modules({"a": layers["a"], "d": {"weight_error": 1.0}}, 1)] == ["d"]
