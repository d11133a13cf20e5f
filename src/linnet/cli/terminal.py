# SPDX-License-Identifier: Apache-2.0
"""What a person sees while work goes on: bars on a terminal, otherwise one plain line every ten seconds.

Results go to standard output; progress, warnings and errors to standard error, so that output can be piped.
"""

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, Task, TaskID, TextColumn, TimeElapsedColumn
from rich.text import Text

from linnet.cli.numbers import human_bytes, human_duration
from linnet.process_memory import peak_bytes

PLAIN_INTERVAL_S = 10.0
_SHORTEST_S, _SMALLEST_SHARE = 0.2, 0.005
"""Less than this says nothing about speed: what happens once, at the start, would be multiplied."""


def output() -> Console:
    """Where results go."""
    return Console(highlight=False, soft_wrap=not sys.stdout.isatty())


def notices() -> Console:
    """Where everything else goes."""
    return Console(stderr=True, highlight=False, soft_wrap=not sys.stderr.isatty())


class _PeakMemoryColumn(ProgressColumn):
    def render(self, task: Task) -> Text:
        return Text(f"peak {human_bytes(peak_bytes())}", style="dim")


class Stages:
    """Progress over named stages; ``update`` is what rooms get as their progress callback."""

    def __init__(self, prefix: str = "", clock: Callable[[], float] = time.monotonic) -> None:
        self._prefix = prefix
        self._console = notices()
        self._live = self._console.is_terminal
        self._tasks: dict[str, TaskID] = {}
        self._clock = clock
        self._pace: dict[str, _Pace] = {}
        self._heard, self._spoken = clock(), -PLAIN_INTERVAL_S
        self._bars = Progress(
            TextColumn("{task.description:<28}"),
            BarColumn(bar_width=30),
            TextColumn("{task.percentage:>3.0f} %"),
            TimeElapsedColumn(),
            TextColumn("ETA"),
            TextColumn("{task.fields[eta]}"),
            _PeakMemoryColumn(),
            TextColumn("[dim]{task.fields[detail]}[/]"),
            console=self._console,
            transient=True,
        )

    def __enter__(self) -> "Stages":
        if self._live:
            self._bars.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._live:
            self._bars.stop()

    def prefixed(self, prefix: str) -> None:
        """Name what the next stages belong to; finished bars of the last one disappear."""
        self._prefix = prefix
        for task in self._tasks.values():
            self._bars.remove_task(task)
        self._tasks.clear()
        self._pace.clear()

    def say(self, line: str) -> None:
        """A line that stays, above the bars."""
        self._console.print(line, style="dim", markup=False)

    def begin(self, stage: str, detail: str) -> None:
        """A bar before anything is known of the work, on a terminal only: in plain lines a mistake that is found within
        moments stands alone."""
        if self._live:
            self.update(stage, 0, 1, detail)

    def update(self, stage: str, done: float, total: float, detail: str = "", eta_s: float | None = None) -> None:
        """Stage ``stage`` has finished ``done`` of ``total`` units and is at ``detail``.

        ``eta_s``: what the worker itself knows; else the stage's own pace since the last news of any stage. The first
        update is shown at once.
        """
        name = f"{self._prefix} {stage}".strip()
        now = self._clock()
        pace = self._pace.get(name)
        if pace is None or done < pace.done:  # begun, or begun again
            pace = self._pace[name] = _Pace(self._heard if done else now)
        pace.done, self._heard = done, now
        left = eta_s if eta_s is not None else pace.left_s(now, total)
        eta = "" if left is None or done >= total else human_duration(left)
        if self._live:
            if name not in self._tasks:
                self._tasks[name] = self._bars.add_task(name, total=total, detail=detail, eta=eta)
            self._bars.update(self._tasks[name], completed=done, total=total, detail=detail, eta=eta or "–")
        elif now - self._spoken >= PLAIN_INTERVAL_S:
            self._spoken = now
            share = f"{100 * done / total:.0f} %" if total else "done"
            about = f", about {eta} left" if eta else ""
            print(
                f"{name}: {share} {detail}{about}, peak memory {human_bytes(peak_bytes())}",
                file=sys.stderr,
                flush=True,
            )


@dataclass
class _Pace:
    """When a stage began and how far it is."""

    began: float
    done: float = 0.0

    def left_s(self, now: float, total: float) -> float | None:
        """None while too little is known."""
        elapsed = now - self.began
        if elapsed < _SHORTEST_S or self.done <= _SMALLEST_SHARE * total:
            return None
        return elapsed / self.done * (total - self.done)


@contextmanager
def stages(prefix: str = "") -> Iterator[Stages]:
    """Progress for the body."""
    with Stages(prefix) as progress:
        yield progress
