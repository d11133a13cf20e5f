# SPDX-License-Identifier: Apache-2.0
"""What a person sees while work goes on: bars on a terminal, otherwise one plain line every ten seconds.

Results go to standard output; progress, warnings and errors to standard error, so that output can be piped.
"""

import resource
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, Task, TaskID, TextColumn, TimeElapsedColumn
from rich.progress import TimeRemainingColumn as EtaColumn
from rich.text import Text

from linnet.cli.numbers import human_bytes, human_duration

PLAIN_INTERVAL_S = 10.0


def output() -> Console:
    """Where results go."""
    return Console(highlight=False, soft_wrap=not sys.stdout.isatty())


def notices() -> Console:
    """Where everything else goes."""
    return Console(stderr=True, highlight=False, soft_wrap=not sys.stderr.isatty())


def peak_memory_bytes() -> int:
    """Largest resident size of this process so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


class _PeakMemoryColumn(ProgressColumn):
    def render(self, task: Task) -> Text:
        return Text(f"peak {human_bytes(peak_memory_bytes())}", style="dim")


class Stages:
    """Progress over named stages; ``update`` is what rooms get as their progress callback."""

    def __init__(self, prefix: str = "") -> None:
        self._prefix = prefix
        self._console = notices()
        self._live = self._console.is_terminal
        self._tasks: dict[str, TaskID] = {}
        self._started: dict[str, float] = {}
        self._spoken = time.monotonic()
        self._bars = Progress(
            TextColumn("{task.description:<28}"),
            BarColumn(bar_width=30),
            TextColumn("{task.percentage:>3.0f} %"),
            TimeElapsedColumn(),
            TextColumn("ETA"),
            EtaColumn(),
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
        self._started.clear()

    def update(self, stage: str, done: float, total: float, detail: str = "") -> None:
        """Stage ``stage`` has finished ``done`` of ``total`` units and is at ``detail``."""
        name = f"{self._prefix} {stage}".strip()
        now = time.monotonic()
        started = self._started.setdefault(name, now)
        if self._live:
            if name not in self._tasks:
                self._tasks[name] = self._bars.add_task(name, total=total, detail=detail)
            self._bars.update(self._tasks[name], completed=done, total=total, detail=detail)
        elif now - self._spoken >= PLAIN_INTERVAL_S:
            self._spoken = now
            eta = f", about {human_duration((now - started) / done * (total - done))} left" if done else ""
            share = f"{100 * done / total:.0f} %" if total else "done"
            print(
                f"{name}: {share} {detail}{eta}, peak memory {human_bytes(peak_memory_bytes())}",
                file=sys.stderr,
                flush=True,
            )


@contextmanager
def stages(prefix: str = "") -> Iterator[Stages]:
    """Progress for the body."""
    with Stages(prefix) as progress:
        yield progress
