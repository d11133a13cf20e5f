# SPDX-License-Identifier: Apache-2.0
"""Money and energy of tokens, with counters of our own."""

from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry

from linnet.serve.costs import Costs, Energy


def package(root: Path, name: str, value: int, most: int = 1000) -> Path:
    folder = root / name
    folder.mkdir(parents=True)
    (folder / "max_energy_range_uj").write_text(f"{most}\n")
    (folder / "energy_uj").write_text(f"{value}\n")
    return folder / "energy_uj"


def test_energy_is_the_sum_of_packages_and_survives_a_counter_that_begins_again(tmp_path: Path) -> None:
    first, second = package(tmp_path, "intel-rapl:0", 900), package(tmp_path, "intel-rapl:1", 0, 10**9)
    package(tmp_path, "intel-rapl:0:0", 5)  # a core's share of the first
    energy = Energy(tmp_path)
    assert energy.joules() == 0
    first.write_text("950")
    assert energy.joules() == pytest.approx(50e-6)
    first.write_text("20")
    second.write_text("3000000")
    assert energy.joules() == pytest.approx(3 + 120e-6)
    first.unlink()
    assert energy.joules() == pytest.approx(3 + 120e-6)


def test_energy_that_cannot_be_read_is_none(tmp_path: Path) -> None:
    assert Energy(tmp_path).joules() is None
    (tmp_path / "intel-rapl:0").mkdir()
    assert Energy(tmp_path).joules() is None


def costs(price: float | None, energy: Energy, tokens: float = 5000) -> Costs:
    times = iter([10.0, *[10.0 + 1800.0] * 20])
    return Costs(price, lambda: tokens, "linnet", "m", energy, lambda: next(times))


def test_half_an_hour_at_two_an_hour_for_five_thousand_tokens(tmp_path: Path) -> None:
    counter = package(tmp_path, "intel-rapl:0", 0, 10**12)
    found = costs(2.0, Energy(tmp_path))
    counter.write_text("10000000000")
    assert found.per_million_tokens() == pytest.approx(200)
    assert found.joules_per_token() == pytest.approx(2)
    assert found.sentence() == "200 per million generated tokens at 2 per hour; 2 joules of the processors a token"
    registry = CollectorRegistry()
    registry.register(found)
    label = {"model_name": "m"}
    assert registry.get_sample_value("linnet:cost_per_million_tokens", label) == pytest.approx(200)
    assert registry.get_sample_value("linnet:energy_joules_total", label) == pytest.approx(10000)
    assert registry.get_sample_value("linnet:energy_readable", label) == 1


def test_what_is_not_known_is_not_shown(tmp_path: Path) -> None:
    nothing = costs(None, Energy(tmp_path))
    assert nothing.sentence() == ""
    assert [family.name for family in nothing.collect()] == ["linnet:energy_readable"]
    assert nothing.facts() == {"cost_per_million_tokens": None, "joules_per_token": None}
    before = costs(2.0, Energy(tmp_path), tokens=0)
    assert before.per_million_tokens() is None
    assert "energy cannot be read here" in costs(2.0, Energy(tmp_path)).sentence()
