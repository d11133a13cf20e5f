# SPDX-License-Identifier: Apache-2.0
"""Arguments written as the options that other programs have."""

import pytest

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
