# SPDX-License-Identifier: Apache-2.0
"""What a server shows on a terminal: one calm screen when it is ready, then a status line that is written over."""

import json
import logging
import sys
from types import TracebackType
from typing import TYPE_CHECKING, Any

from rich.live import Live
from rich.table import Table
from rich.text import Text

from linnet.cli.numbers import human_bytes
from linnet.cli.terminal import notices

if TYPE_CHECKING:
    from linnet.api import ServedModel
    from linnet.serve import Server
    from linnet.settings import ServeConfig


class Screen:
    """``say`` prints lines that stay, above the status line. Warnings of the log go there, too."""

    def __init__(self) -> None:
        self._console = notices()
        self._live = Live(console=self._console, auto_refresh=False, transient=True)
        self._streams: list[tuple[logging.StreamHandler[Any], Any]] = []

    def __enter__(self) -> "Screen":
        self._live.start()
        for handler in logging.getLogger().handlers:
            if isinstance(handler, logging.StreamHandler) and handler.stream is not sys.stderr:
                self._streams.append((handler, handler.setStream(sys.stderr)))  # which the live line stands aside for
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for handler, stream in self._streams:
            handler.setStream(stream)
        self._live.stop()

    def say(self, line: str) -> None:
        """A line that stays."""
        self._console.print(line, markup=False)

    def status(self, line: str) -> None:
        """The line that changes."""
        self._live.update(Text(line, style="dim", no_wrap=True, overflow="ellipsis"), refresh=True)

    def begin(self, served: "ServedModel", config: "ServeConfig", address: str, server: "Server") -> None:
        """The screen of a server that is ready."""
        memory, tokens = server.memory, served.facts.kv_tokens
        table = Table(box=None, show_header=False, pad_edge=False)
        table.add_column(style="dim")
        table.add_column(overflow="fold")
        page = "the API under /v1" if config.uds or not config.ui else "a page to chat; the API under /v1"
        table.add_row("at", f"{address}  ({page})")
        table.add_row("context", f"{served.max_model_len:,} tokens; room for {tokens:,} of all requests")
        now, most = human_bytes(memory.peak_bytes()), human_bytes(memory.predicted.total_bytes)
        table.add_row("memory", f"{now} so far, {most} predicted at the most")
        table.add_row("numerics", served.numerics_id)
        if str(served.sampling_defaults):
            table.add_row("sampling", f"{served.sampling_defaults}, unless asked otherwise")
        self._console.print()
        self._console.print(Text(config.names[0], style="bold"))
        self._console.print(table)
        self._console.print()
        self._console.print(Text(curl(config, address)), soft_wrap=True)  # one line to paste, however long
        self._console.print()


def curl(config: "ServeConfig", address: str) -> str:
    """A line to paste that asks something."""
    where = f"--unix-socket {config.uds} http://localhost" if config.uds else address
    key = ' -H "Authorization: Bearer $LINNET_API_KEY"' if config.keys else ""
    body = json.dumps({"model": config.names[0], "messages": [{"role": "user", "content": "Hello"}]})
    quoted = body.replace("'", "'\\''")
    return f"curl {where}/v1/chat/completions{key} -H 'Content-Type: application/json' -d '{quoted}'"
