# SPDX-License-Identifier: Apache-2.0
"""Runs a server in this process until it is told to end: socket, engine, uvicorn, signals.

Order: the socket listens before the model is served (who connects early waits) and a taken port ends it all, the engine
starts before the first connection is accepted, and ends after the last answer is out.
"""

import asyncio
import contextlib
import errno
import os
import signal
import socket
import stat
from collections.abc import Callable, Iterator
from functools import partial

import uvicorn

from linnet.api import ServedModel
from linnet.errors import ConfigError
from linnet.logs import json_line
from linnet.serve.app import Server, build_server
from linnet.serve.bridge import STOP_S
from linnet.serve.connection import Connection
from linnet.serve.security import check_bind
from linnet.serve.status import report_status
from linnet.serve.watching import watchers
from linnet.settings import ServeConfig

LEAVE_S = 5.0
BACKLOG = 1024
LIVE_S = 1.0


def bind(config: ServeConfig) -> socket.socket:
    """The listening socket; ``run`` or ``release`` ends it.

    Raises ConfigError for an address that is taken, unknown, or public without a key. It listens at once: until one of
    them listens, two servers may be bound to one port.
    """
    if config.uds is not None:
        return _bind_unix(config.uds)
    check_bind(config.host, config.keys)
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            config.host, config.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        listener = socket.socket(family, kind, protocol)
        try:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind(address)
            listener.listen(BACKLOG)
        except OSError:
            listener.close()
            raise
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            reason = "it is in use; choose another, or 0 for any free one"
        else:
            reason = error.strerror or str(error)
        raise ConfigError(f"cannot listen on {config.host} port {config.port}: {reason}") from None
    return listener


def _bind_unix(path: str) -> socket.socket:
    """A socket file for this user only; one that a dead server left behind is replaced."""
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        if os.path.exists(path) and stat.S_ISSOCK(os.stat(path).st_mode):
            with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
                if probe.connect_ex(path) == 0:
                    raise ConfigError(f"cannot listen on the UNIX socket {path}: another server uses it")
            os.unlink(path)
        before = os.umask(0o177)
        try:
            listener.bind(path)
        finally:
            os.umask(before)
        listener.listen(BACKLOG)
    except OSError as error:
        listener.close()
        in_the_way = error.errno == errno.EADDRINUSE
        reason = "there is a file of that name" if in_the_way else error.strerror or str(error)
        raise ConfigError(f"cannot listen on the UNIX socket {path}: {reason}") from None
    return listener


def release(listener: socket.socket, config: ServeConfig) -> None:
    """End a listening socket that no server came to use, and remove its file if it has one."""
    listener.close()
    if config.uds is not None:
        with contextlib.suppress(OSError):
            os.unlink(config.uds)


def address_of(listener: socket.socket) -> str:
    """What a client connects to."""
    if listener.family == socket.AF_UNIX:
        return f"unix:{listener.getsockname()}"
    host, port = listener.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def run(
    model: ServedModel,
    listener: socket.socket,
    config: ServeConfig,
    say: Callable[[str], None],
    ready: Callable[[Server], None] = lambda server: None,
    live: Callable[[str], None] | None = None,
) -> int:
    """Serve until a signal or a failure; returns the exit status. ``ready`` is called when connections are accepted.
    ``live`` gets the status every second in place of ``say``, whether there is traffic or not.

    The engine has ended then, unless it is a thread with a step that does not end: the model's memory is in use and
    must not be released.
    """
    return asyncio.run(_run(model, listener, config, say, ready, live))


async def _run(
    model: ServedModel,
    listener: socket.socket,
    config: ServeConfig,
    say: Callable[[str], None],
    ready: Callable[[Server], None],
    live: Callable[[str], None] | None,
) -> int:
    async with watchers(config, say) as told:
        server = build_server(model, config)
        server.app.watchers = told
        await _serve(server, listener, config, say, ready, live)
        return server.lifecycle.exit_status


async def _serve(
    server: Server,
    listener: socket.socket,
    config: ServeConfig,
    say: Callable[[str], None],
    ready: Callable[[Server], None],
    live: Callable[[str], None] | None,
) -> None:
    """From the first connection to the last answer; ``lifecycle.exit_status`` says how it went."""
    loop = asyncio.get_running_loop()
    lifecycle = server.lifecycle
    http = _Http(_http_config(server, config), lambda: ready(server))
    lifecycle.stop_listening = http.leave
    server.bridge.start(loop)
    with signals(loop, lifecycle.signalled):
        lifecycle.watch()
        status = loop.create_task(
            report_status(
                lambda: server.bridge.door.counters,
                server.metrics.generated,
                LIVE_S if live else config.status_s or 1e6,
                config.log_json,
                live or say,
                partial(_look, server),
                idle=live is not None,
            )
        )
        modules = loop.create_task(server.conversations.compute_modules(server.admission))
        try:
            await http.serve(sockets=[listener])
        finally:
            modules.cancel()
            status.cancel()
            say(_last_line(server, config))
            server.generation.close()
            server.conversations.close()
            try:
                await asyncio.to_thread(server.bridge.stop, 0.0 if lifecycle.stuck else STOP_S)
            except TimeoutError:  # a step that never ends; nothing can be saved
                lifecycle.exit_status = 1
            release(listener, config)


def _look(server: Server) -> None:
    """What must be read now and then, or is missed."""
    server.memory.look()
    server.costs.look()


def _last_line(server: Server, config: ServeConfig) -> str:
    """What it has taken of memory, money and energy: asked while the engine is there."""
    memory, costs = server.memory, server.costs
    if not config.log_json:
        return "; ".join(filter(None, (memory.sentence(), costs.sentence())))
    most, predicted = memory.peak_bytes(), memory.predicted.total_bytes
    return json_line("ended", {"peak_memory_bytes": most, "predicted_memory_bytes": predicted} | costs.facts())


def _http_config(server: Server, config: ServeConfig) -> uvicorn.Config:
    return uvicorn.Config(
        server.app,
        http=Connection,
        ws="none",
        lifespan="off",
        loop="asyncio",
        log_config=None,
        log_level="error",
        access_log=False,
        server_header=False,
        proxy_headers=False,
        backlog=BACKLOG,
        limit_concurrency=config.connections,
        timeout_keep_alive=30,
        timeout_graceful_shutdown=int(LEAVE_S),
    )


class _Http(uvicorn.Server):
    """uvicorn without its own signal handlers: the lifecycle decides when to leave."""

    def __init__(self, config: uvicorn.Config, ready: Callable[[], None]) -> None:
        super().__init__(config)
        self._ready = ready

    def leave(self) -> None:
        """Stop listening, finish what is being sent, return from ``serve``."""
        self.should_exit = True

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self._ready()


@contextlib.contextmanager
def signals(loop: asyncio.AbstractEventLoop, handler: Callable[[], None]) -> Iterator[None]:
    """SIGTERM and SIGINT; outside the main thread (tests) there are none to handle."""
    handled: list[signal.Signals] = []
    for number in (signal.SIGTERM, signal.SIGINT):
        with contextlib.suppress(ValueError, RuntimeError):
            loop.add_signal_handler(number, handler)
            handled.append(number)
    try:
        yield
    finally:
        for number in handled:
            loop.remove_signal_handler(number)
