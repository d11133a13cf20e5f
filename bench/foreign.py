# SPDX-License-Identifier: Apache-2.0
"""How much of the processors others used while something was measured: a sample beside a busy machine is no sample."""

import os
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TypeVar

MOST_CORES = 0.1
"""Foreign load above this spoils a sample."""

MOST_DRIFT = 0.15
"""How far the machine's own limits may move while a sample is taken: on shared hosts the read bandwidth has states a
factor of 1.7 apart that hold for seconds to minutes."""

TRIES = 4

T = TypeVar("T")


def busy_ticks(stat: str) -> int:
    """Ticks all processors spent working, out of /proc/stat: user, nice, system, irq, softirq; not what was stolen."""
    fields = [int(field) for field in stat.split("\n", 1)[0].split()[1:]]
    return sum(fields[index] for index in (0, 1, 2, 5, 6))


def process_ticks(stat: str) -> tuple[int, int]:
    """(parent, ticks of the process and of the children it waited for) out of /proc/PID/stat."""
    fields = stat.rpartition(")")[2].split()
    return int(fields[1]), sum(int(field) for field in fields[11:15])


def tree_ticks(stats: Iterable[tuple[int, str]], roots: Iterable[int]) -> int:
    """Ticks of these processes and all that descend from them; ``stats``: (pid, its stat) of every process."""
    parents, ticks = {}, {}
    for pid, stat in stats:
        parents[pid], ticks[pid] = process_ticks(stat)
    wanted = set(roots)
    known = 0
    while known != len(wanted):
        known = len(wanted)
        wanted |= {pid for pid, parent in parents.items() if parent in wanted}
    return sum(ticks.get(pid, 0) for pid in wanted)


def _stats() -> Iterable[tuple[int, str]]:
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                yield int(entry.name), (entry / "stat").read_text()
            except OSError:
                continue  # it ended meanwhile


class ForeignLoad:
    """Cores used by processes that do not descend from this one, since it was made."""

    def __init__(self) -> None:
        self._started, self._busy, self._own = time.monotonic(), *self._look()

    def cores(self) -> float:
        """Since this object was made; a tick is a hundredth of a second, so short times are coarse."""
        busy, own = self._look()
        ticks = (busy - self._busy) - (own - self._own)
        return max(ticks, 0) / os.sysconf("SC_CLK_TCK") / max(time.monotonic() - self._started, 1e-9)

    @staticmethod
    def _look() -> tuple[int, int]:
        return busy_ticks(Path("/proc/stat").read_text()), tree_ticks(_stats(), [os.getpid()])


def undisturbed(
    measure: Callable[[], T], tries: int = TRIES, most: float = MOST_CORES, drift: Callable[[T], float] = lambda _: 0.0
) -> tuple[T, float]:
    """Measure until a sample was taken beside at most ``most`` cores of foreign load, on a machine that held its speed.

    ``drift`` says how far the machine's own limits moved during a sample (see MOST_DRIFT). Returns the best sample of
    all tries, foreign load counting first, and its load.
    """
    best: tuple[tuple[bool, bool, float], T, float] | None = None
    for attempt in range(tries):
        if attempt:
            time.sleep(1.0)
        load = ForeignLoad()
        value = measure()
        cores = load.cores()
        moved = drift(value)
        rank = (cores > most, moved > MOST_DRIFT, cores)
        if best is None or rank < best[0]:
            best = rank, value, cores
        if rank[:2] == (False, False):
            break
    assert best is not None
    return best[1], best[2]
