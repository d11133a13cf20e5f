# SPDX-License-Identifier: Apache-2.0
"""Arguments written as the options that other programs have."""

from pathlib import Path

import pytest

from linnet.cli.main import run
from linnet.cli.words import positional


@pytest.mark.parametrize(
    ("given", "taken"),
    [
        (["DIR", "text", "--seed", "1"], ["DIR", "text", "--seed", "1"]),
        (["-m", "DIR", "-p", "text"], ["DIR", "--", "text"]),
        (["-p", "-5 is", "--model=DIR", "--seed", "1"], ["DIR", "--seed", "1", "--", "-5 is"]),
        (["DIR", "--prompt", "text"], ["DIR", "--", "text"]),
        (["-m", "DIR", "--", "-p"], ["DIR", "--", "-p"]),
        (["-m"], ["-m"]),
        (["-m", "A", "-m", "B"], ["A", "-m", "B"]),
    ],
)
def test_they_go_where_the_arguments_belong(given: list[str], taken: list[str]) -> None:
    assert positional(given, ["model", "prompt"]) == taken


def test_a_command_without_such_an_argument_keeps_its_words() -> None:
    assert positional(["-p", "x", "-m", "y"], []) == ["-p", "x", "-m", "y"]


def test_the_value_of_another_option_is_no_argument() -> None:
    given = ["-m", "DIR", "--stop", "-p", "--stop=-p", "-p", "text"]
    assert positional(given, ["model", "prompt"], {"--stop"}) == ["DIR", "--stop", "-p", "--stop=-p", "--", "text"]


def test_a_command_knows_which_of_its_options_take_a_value(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["generate", "./nowhere", "text", "--stop", "-p", "--no-stats", "--prompt", "x"]) == 2
    assert "unexpected extra argument" in capsys.readouterr().err


def test_a_part_of_a_path_is_no_parameter(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "generation_config" / "my"
    folder.mkdir(parents=True)
    (folder / "generation_config.json").write_text('{"temperature": -1}')
    assert run(["generate", str(folder), "text"]) == 3
    said = capsys.readouterr().err
    assert f"{folder}/generation_config.json: " in said
    assert "--generation-config none ignores it" in said
