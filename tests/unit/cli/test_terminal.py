# SPDX-License-Identifier: Apache-2.0
"""Progress lines: the first at once, the ETA from when a stage began or from the worker, again after a new pass."""

import pytest

from linnet.cli.terminal import Stages


@pytest.fixture
def now() -> list[float]:
    return [100.0]


@pytest.fixture
def progress(now: list[float]) -> Stages:
    return Stages(clock=lambda: now[0])


def lines(capsys: pytest.CaptureFixture[str]) -> list[str]:
    return [line.split(", peak")[0] for line in capsys.readouterr().err.splitlines()]


def test_the_first_line_comes_at_once_and_the_next_after_ten_seconds(progress, now, capsys):
    progress.update("compress", 0, 1, "starting")
    now[0] += 9
    progress.update("compress", 0.1, 1, "a")
    now[0] += 1
    progress.update("compress", 0.2, 1, "b")
    assert lines(capsys) == ["compress: 0 % starting", "compress: 20 % b, about 40 s left"]


def test_a_stage_that_is_first_heard_of_when_a_quarter_is_done_began_earlier(progress, now, capsys):
    now[0] += 20
    progress.update("text", 1, 4, "")
    assert lines(capsys) == ["text: 25 % , about 1 min 00 s left"]


def test_a_second_pass_under_the_same_name_has_its_own_clock(progress, now, capsys):
    for done in (1, 2, 3, 4):
        now[0] += 100
        progress.update("text", done, 4)
    now[0] += 20
    progress.update("text", 1, 4)
    assert lines(capsys)[-1] == "text: 25 % , about 1 min 00 s left"


def test_what_the_worker_knows_is_believed(progress, now, capsys):
    now[0] += 1
    progress.update("compress", 0.5, 1, "a", eta_s=300.0)
    assert lines(capsys) == ["compress: 50 % a, about 5 min 00 s left"]
