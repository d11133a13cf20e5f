# SPDX-License-Identifier: Apache-2.0
"""What an operator decides about a server, as frozen records. Nothing here reads the environment."""

from dataclasses import dataclass, field

from linnet.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class RequestLimits:
    """Caps of one request; beyond them it is refused with a sentence that names the parameter.

    samples, stops, logprobs, prompts, messages: the most of each (``n``, ``stop``, …).
    body_bytes, body_s: size of a request body, and how long it may take to arrive.
    deadline_s:         the longest a request may take, queueing included; None: no limit but the client's own.
    """

    samples: int = 128
    stops: int = 16
    logprobs: int = 20
    prompts: int = 1024
    messages: int = 4096
    body_bytes: int = 8 << 20
    body_s: float = 30.0
    deadline_s: float | None = None


@dataclass(frozen=True, kw_only=True)
class QueueLimits:
    """How much unfinished work is accepted, running and waiting together; beyond it the answer is 429."""

    samples: int
    prompt_tokens: int = 1 << 20
    body_bytes: int = 64 << 20


@dataclass(frozen=True, kw_only=True)
class ServeConfig:
    """One server.

    host, port, uds:  where it listens: a TCP address, or a UNIX socket (then host and port are unused).
    names:            exact names that ``model`` may have; the first is the one shown in answers.
    keys:             accepted API keys; empty: no key is asked for (loopback only).
    allowed_hosts:    Host names accepted besides the loopback names and ``host`` itself.
    shutdown_s:       how long unfinished requests may run on after SIGTERM.
    stall_s:          a step longer than this makes /health say so.
    keep_alive_s:     a comment is sent into a stream that was silent that long; 0: never.
    connections:      open TCP connections at most.
    default_max_tokens: where a chat answer ends that names no number; None: what the checkpoint recommends, else 4,096.
    """

    names: tuple[str, ...]
    host: str = "127.0.0.1"
    port: int = 8000
    uds: str | None = None
    keys: tuple[str, ...] = ()
    allowed_hosts: tuple[str, ...] = ()
    shutdown_s: float = 30.0
    stall_s: float = 60.0
    keep_alive_s: float = 15.0
    status_s: float = 10.0
    connections: int = 4096
    limits: RequestLimits = field(default_factory=RequestLimits)
    queue_prompt_tokens: int = 1 << 20
    queue_body_bytes: int = 64 << 20
    metrics_prefix: str = "linnet"
    log_json: bool = False
    default_max_tokens: int | None = None

    def __post_init__(self) -> None:
        if not self.names or any(not 1 <= len(name) <= 256 or not name.isprintable() for name in self.names):
            wrong = next((name for name in self.names if not 1 <= len(name) <= 256 or not name.isprintable()), "")
            raise ConfigError(f"names has {wrong[:80]!r}; accepted are 1 to 256 printable letters", settings=["names"])
        if not 0 <= self.port <= 65535:
            raise ConfigError(f"port is {self.port}; accepted is 0 (any free one) to 65535", settings=["port"])
        for name in ("shutdown_s", "stall_s", "keep_alive_s", "status_s"):
            if not 0 <= getattr(self, name) <= 1e6:
                raise ConfigError(f"{name} is {getattr(self, name)}; accepted is 0 to 1000000 seconds", settings=[name])
        for name, value in (
            ("queue_prompt_tokens", self.queue_prompt_tokens),
            ("queue_body_bytes", self.queue_body_bytes),
            ("body_bytes", self.limits.body_bytes),
            ("default_max_tokens", self.default_max_tokens),
        ):
            if value is not None and value < 1:
                raise ConfigError(f"{name} is {value}; accepted is 1 or more", settings=[name])
        if any(len(key) < 8 or not key.isascii() or not key.isprintable() or " " in key for key in self.keys):
            raise ConfigError(
                "an API key is too short or has odd characters; accepted are 8 or more printable ASCII characters"
            )
