# SPDX-License-Identifier: Apache-2.0
"""What logs and traces are told of a request once its last byte is out.

Of what a client wrote there are the request id and the trace context that it may choose, and names and numbers that
were checked: never a prompt, an answer, a key or an unknown path.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from typing import Any

from linnet.api import Sample
from linnet.serve.bridge import Job
from linnet.serve.metrics import LEFT
from linnet.serve.preparing import Prepared

READING = ("GET", "HEAD")


@dataclass(frozen=True, slots=True)
class Usage:
    """Tokens of a request: of its prompts (each once, whatever n is; cached: of those), and generated."""

    prompt: int
    generated: int
    cached: int

    @staticmethod
    def of(prepared: Prepared, samples: Sequence[Sample]) -> "Usage":
        """As far as the samples have come."""
        firsts = [sample for sample in samples if sample.index % prepared.params.n == 0]
        return Usage(
            prompt=prepared.prompt_tokens,
            generated=sum(len(sample.stream.token_ids) for sample in samples),
            cached=sum(sample.stream.cached_tokens for sample in firsts),
        )


@dataclass(frozen=True, slots=True)
class Work:
    """What the engine was asked for, by one request, and did. Seconds; None: it did not come to that.

    max_tokens: of a sample. queued_s: from the engine's door to the first step. first_token_s: from the arrival.
    """

    model: str
    samples: int
    n: int
    max_tokens: int
    temperature: float
    top_p: float
    usage: Usage
    finish_reasons: tuple[str, ...]
    queued_s: float | None
    first_token_s: float | None

    @staticmethod
    def of(prepared: Prepared, job: Job) -> "Work":
        """Of a job that has ended, or whose client has left."""
        params = prepared.params
        return Work(
            model=prepared.request.model,
            samples=len(job.samples),
            n=params.n,
            max_tokens=job.samples[0].submit.max_tokens,
            temperature=params.temperature,
            top_p=params.top_p,
            usage=Usage.of(prepared, job.samples),
            finish_reasons=tuple(sample.stream.finish_reason or "abort" for sample in job.samples),
            queued_s=job.queued_s,
            first_token_s=job.first_token_s,
        )

    def facts(self) -> dict[str, Any]:
        """For a line of the log."""
        return {
            "model": self.model,
            "prompt_tokens": self.usage.prompt,
            "completion_tokens": self.usage.generated,
            "cached_tokens": self.usage.cached,
            "finish_reasons": list(self.finish_reasons),
            "queued_s": _rounded(self.queued_s),
            "first_token_s": _rounded(self.first_token_s),
        }


@dataclass(slots=True)
class RequestRecord:
    """One request. ``trace``: header fields of a trace that it belongs to. ``route``: its template, as the router has
    it. ``tenant``: tells keys apart, and nothing else; None where no key is asked for."""

    request_id: str
    method: str
    trace: Mapping[str, str]
    route: str = "other"
    status: int = LEFT
    tenant: str | None = None
    total_s: float = 0.0
    began_ns: int = field(default_factory=time.time_ns)
    _began_s: float = field(default_factory=time.monotonic)
    _sent: tuple[Prepared, Job] | None = None

    def belongs_to(self, salt: bytes) -> None:
        """The key's salt, of which a name is made that says nothing about either."""
        self.tenant = sha256(b"tenant" + salt).hexdigest()[:12]

    def sent(self, prepared: Prepared, job: Job) -> None:
        """It went to the engine."""
        self._sent = prepared, job

    def end(self, route: str | None, status: int) -> None:
        """The last byte is out. Status 0: the client left before there was one."""
        self.route, self.status = route or "other", status or LEFT
        self.total_s = time.monotonic() - self._began_s

    @property
    def worth_telling(self) -> bool:
        """Not a probe, a scrape or a look at the page that found what it wanted."""
        return self.method not in READING or self.status >= 400

    def work(self) -> Work | None:
        """What the engine did for it."""
        return None if self._sent is None else Work.of(*self._sent)

    def facts(self) -> dict[str, Any]:
        """For a line of the log."""
        work = self.work()
        return {
            "request_id": self.request_id,
            "method": self.method,
            "route": self.route,
            "status": self.status,
            "tenant": self.tenant,
            **({} if work is None else work.facts()),
            "total_s": _rounded(self.total_s),
        }


Teller = Callable[[RequestRecord], None]


def _rounded(seconds: float | None) -> float | None:
    return None if seconds is None else round(seconds, 6)
