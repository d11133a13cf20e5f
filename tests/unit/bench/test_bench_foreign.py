# SPDX-License-Identifier: Apache-2.0
"""Who used the processors: bench/foreign.py on made-up /proc files."""

from collections.abc import Iterator

import pytest

import foreign

STAT = "cpu  100 2 30 5000 7 11 13 17 0 0\ncpu0 50 1 15 2500 3 5 6 8 0 0\n"


def process(parent: int, ticks: tuple[int, int, int, int], name: str = "(a b) c)") -> str:
    return f"7 ({name}) S {parent} 7 7 0 -1 4194304 100 0 0 0 {' '.join(map(str, ticks))} 20 0 1 0 12345"


def test_busy_is_what_worked_not_what_waited_or_was_stolen() -> None:
    assert foreign.busy_ticks(STAT) == 100 + 2 + 30 + 11 + 13


def test_a_name_with_brackets_does_not_confuse() -> None:
    assert foreign.process_ticks(process(42, (1, 2, 3, 4))) == (42, 10)


def test_descendants_count_as_own_others_do_not() -> None:
    stats = [
        (1, process(0, (1000, 0, 0, 0))),
        (10, process(1, (5, 0, 0, 0))),
        (12, process(11, (7, 0, 0, 0))),
        (11, process(10, (6, 0, 0, 0))),
        (20, process(1, (500, 0, 0, 0))),
    ]
    assert foreign.tree_ticks(stats, [10]) == 5 + 6 + 7


class FakeLoad:
    """Hands out the loads it was given."""

    loads: Iterator[float]

    def cores(self) -> float:
        return next(FakeLoad.loads)


@pytest.mark.parametrize(
    ("loads", "expected"),
    [
        ([0.05], (0, 0.05)),
        ([0.9, 0.02], (1, 0.02)),
        ([0.9, 0.5, 0.7, 0.6], (1, 0.5)),  # never quiet: the quietest of all tries
    ],
)
def test_a_disturbed_sample_is_repeated(
    loads: list[float], expected: tuple[int, float], monkeypatch: pytest.MonkeyPatch
) -> None:
    FakeLoad.loads = iter(loads)
    monkeypatch.setattr(foreign, "ForeignLoad", FakeLoad)
    monkeypatch.setattr(foreign.time, "sleep", lambda _: None)
    samples = iter(range(10))
    assert foreign.undisturbed(lambda: next(samples)) == expected


def test_the_real_files_can_be_read() -> None:
    assert foreign.ForeignLoad().cores() >= 0


def test_a_sample_on_a_changing_machine_is_repeated(monkeypatch: pytest.MonkeyPatch) -> None:
    FakeLoad.loads = iter([0.0, 0.0, 0.0])
    monkeypatch.setattr(foreign, "ForeignLoad", FakeLoad)
    monkeypatch.setattr(foreign.time, "sleep", lambda _: None)
    drifts = iter([0.7, 0.3, 0.01])
    assert foreign.undisturbed(lambda: next(drifts), drift=lambda drift: drift) == (0.01, 0.0)
