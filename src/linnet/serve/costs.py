# SPDX-License-Identifier: Apache-2.0
"""What tokens cost: money, from a price per hour, and energy, from the processor's own counters (RAPL) where those can
be read. Both are of the whole machine and the whole time since the start, idle time included; nothing is estimated.
"""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, Metric

POWERCAP = Path("/sys/class/powercap")
SECONDS_OF_AN_HOUR = 3600.0


@dataclass
class _Package:
    """A counter of microjoules that begins again at zero after ``most``."""

    path: Path
    most: int
    last: int
    total: int = 0


class Energy:
    """Joules that all processor packages took since this was made; ``joules`` is None where they cannot be read.

    Counters wrap within minutes to hours under load: ``joules`` must be asked more often than that.
    """

    def __init__(self, root: Path = POWERCAP) -> None:
        self._packages: list[_Package] = []
        for folder in sorted(root.glob("intel-rapl:*")):
            if folder.name.count(":") != 1:  # a part of a package is in the package's counter already
                continue
            try:
                most = int((folder / "max_energy_range_uj").read_text())
                self._packages.append(_Package(folder / "energy_uj", most, int((folder / "energy_uj").read_text())))
            except (OSError, ValueError):
                continue

    def joules(self) -> float | None:
        """So far."""
        if not self._packages:
            return None
        for one in self._packages:
            try:
                now = int(one.path.read_text())
            except (OSError, ValueError):
                continue
            one.total += now - one.last if now >= one.last else now + one.most - one.last
            one.last = now
        return sum(one.total for one in self._packages) / 1e6


class Costs:
    """Of one server; a collector of metrics. price_per_hour: of the machine, in any currency; None: not known."""

    def __init__(
        self,
        price_per_hour: float | None,
        generated: Callable[[], float],
        prefix: str,
        model_name: str,
        energy: Energy | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._price, self._generated, self._clock = price_per_hour, generated, clock
        self._prefix, self._model_name = prefix, model_name
        self._energy = Energy() if energy is None else energy
        self._began_s = clock()

    def per_million_tokens(self) -> float | None:
        """The price of a million generated tokens at the mean pace since the start; None before the first."""
        tokens = self._generated()
        if self._price is None or tokens <= 0:
            return None
        return self._price * (self._clock() - self._began_s) / SECONDS_OF_AN_HOUR / tokens * 1e6

    def joules_per_token(self) -> float | None:
        """Of a generated token; None where energy cannot be read, and before the first."""
        joules, tokens = self._energy.joules(), self._generated()
        return None if joules is None or tokens <= 0 else joules / tokens

    def look(self) -> None:
        """Read the counters, before they wrap."""
        self._energy.joules()

    def facts(self) -> dict[str, float | None]:
        """For a log in JSON; null: not known."""
        return {"cost_per_million_tokens": self.per_million_tokens(), "joules_per_token": self.joules_per_token()}

    def sentence(self) -> str:
        """For people; empty where nobody asked for a price and no energy can be told."""
        cost, energy = self.per_million_tokens(), self.joules_per_token()
        if cost is None and energy is None:
            return ""
        parts = [] if cost is None else [f"{cost:,.4g} per million generated tokens at {self._price:g} per hour"]
        parts.append(
            "energy cannot be read here (no readable /sys/class/powercap/intel-rapl)"
            if energy is None
            else f"{energy:,.3g} joules of the processors a token"
        )
        return "; ".join(parts)

    def collect(self) -> Iterator[Metric]:
        """Gauges and a counter; what is not known is not there, and ``energy_readable`` says so."""
        joules, cost = self._energy.joules(), self.per_million_tokens()
        readable = (
            "energy_readable",
            "Whether the energy of the processors can be read.",
            float(joules is not None),
        )
        price = ("cost_per_million_tokens", "Of generated tokens, at --price-per-hour, idle time included.", cost)
        for name, text, value in (readable, price):
            if value is not None:
                gauge = GaugeMetricFamily(f"{self._prefix}:{name}", text, labels=("model_name",))
                gauge.add_metric((self._model_name,), value)
                yield gauge
        if joules is not None:
            counter = CounterMetricFamily(
                f"{self._prefix}:energy_joules", "Energy of all processors of the machine.", labels=("model_name",)
            )
            counter.add_metric((self._model_name,), joules)
            yield counter
