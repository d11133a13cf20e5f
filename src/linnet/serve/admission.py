# SPDX-License-Identifier: Apache-2.0
"""The bounded queue: how much unfinished work the server holds, counted in samples, prompt tokens and body bytes.

Everything lives on the event loop. A Ticket is charged as a request becomes known (bytes, then samples and tokens) and
is given back once the handler has left *and* the engine has finished every sample, so what an abort still holds counts.
"""

import time
from collections import deque
from collections.abc import Callable

from linnet.serve.config import QueueLimits
from linnet.serve.errors import ApiError, invalid, queue_full, unavailable

LEAST_RETRY_S, MOST_RETRY_S = 1, 120
RATE_SAMPLES = 64


class Admission:
    """Totals of all open tickets. ``close`` makes every later request answer 503."""

    def __init__(
        self,
        limits: QueueLimits,
        clock: Callable[[], float] = time.monotonic,
        on_reject: Callable[[str], None] = lambda reason: None,
    ) -> None:
        self.limits = limits
        self.requests = self.samples = self.prompt_tokens = self.body_bytes = 0
        self._clock = clock
        self._on_reject = on_reject
        self._finished: deque[float] = deque(maxlen=RATE_SAMPLES)
        self._closed: str | None = None

    def close(self, reason: str) -> None:
        """Refuse everything from now on, with this sentence."""
        self._closed = reason

    @property
    def open(self) -> bool:
        """Whether new requests are accepted at all."""
        return self._closed is None

    def enter(self) -> "Ticket":
        """A request has arrived, nothing of it is known. Raises ApiError 429 or 503."""
        if self._closed is not None:
            self._on_reject("unavailable")
            raise unavailable(self._closed)
        if self.requests >= self.limits.samples or self.samples >= self.limits.samples:
            raise self.refused("requests")
        self.requests += 1
        return Ticket(self)

    def refused(self, what: str) -> ApiError:
        """The 429 for a full queue, with an honest guess of when there is room."""
        self._on_reject(what)
        return queue_full(f"{what} in the queue", self.retry_after_s())

    def woke(self) -> None:
        """Work begins after idleness, which says nothing about the pace."""
        self._finished.clear()

    def finished(self) -> None:
        """A sample has ended; its time feeds the guess."""
        self._finished.append(self._clock())

    def retry_after_s(self) -> int:
        """Seconds until about a tenth of the queue has gone at the recent pace, within 1 and 120."""
        if len(self._finished) < 2:
            return LEAST_RETRY_S
        elapsed = max(self._clock() - self._finished[0], 1e-3)
        pace = len(self._finished) / elapsed
        return max(LEAST_RETRY_S, min(MOST_RETRY_S, round(max(self.samples, 1) / 10 / pace)))


class Ticket:
    """One request's share of the queue."""

    def __init__(self, admission: Admission) -> None:
        self._admission = admission
        self._samples = self._prompt_tokens = self._body_bytes = 0
        self._left = False
        self._returned = False

    def charge(self, body_bytes: int) -> None:
        """More body has come. Raises ApiError 429."""
        admission = self._admission
        if body_bytes and admission.body_bytes + body_bytes > admission.limits.body_bytes:
            raise admission.refused("body bytes")
        admission.body_bytes += body_bytes
        self._body_bytes += body_bytes

    def check(self, samples: int, prompt_tokens: int, params: tuple[str, str] = ("n", "prompt")) -> None:
        """Whether ``take`` would succeed now. Raises ApiError 429, or 400 for what no empty queue could hold.

        ``params``: what the client calls the parameters behind the two numbers.
        """
        admission, limits = self._admission, self._admission.limits
        for name, wanted, most, param in (
            ("samples", samples, limits.samples, params[0]),
            ("prompt tokens", prompt_tokens, limits.prompt_tokens, params[1]),
        ):
            if wanted > most:
                raise invalid(f"the request has {wanted} {name}; this server takes at most {most} at once", param)
        if not admission.open:
            raise unavailable("the server is shutting down")
        if admission.samples + samples > limits.samples:
            raise admission.refused("requests")
        if admission.prompt_tokens + prompt_tokens > limits.prompt_tokens:
            raise admission.refused("prompt tokens")

    def take(self, samples: int, prompt_tokens: int) -> None:
        """The request goes to the engine. Raises as ``check`` does, and has then taken nothing."""
        self.check(samples, prompt_tokens)
        if not self._admission.samples:
            self._admission.woke()
        self._admission.samples += samples
        self._admission.prompt_tokens += prompt_tokens
        self._samples += samples
        self._prompt_tokens += prompt_tokens

    def sample_done(self) -> None:
        """The engine has finished one sample."""
        self._samples -= 1
        self._admission.samples -= 1
        self._admission.finished()
        self._settle()

    def leave(self) -> None:
        """The handler is done with the request. Idempotent."""
        self._left = True
        self._settle()

    def _settle(self) -> None:
        if self._returned or not self._left or self._samples > 0:
            return
        self._returned = True
        self._admission.requests -= 1
        self._admission.prompt_tokens -= self._prompt_tokens
        self._admission.body_bytes -= self._body_bytes
