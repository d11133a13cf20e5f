# SPDX-License-Identifier: Apache-2.0
"""How a generating request is served, from its arrival to its last byte.

In this order: content type, deadline, a place in the bounded queue, the body, preparation in a worker thread, a place
for its samples, the engine, the answer. Whatever ends it early (an error, a deadline, a client that leaves) gives back
everything it took; a stream's headers wait for its first piece, so that early errors still have their status.
"""

import asyncio
import math
import os
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from dataclasses import replace
from functools import partial
from typing import Any, TypeVar

from starlette.requests import Request
from starlette.responses import Response

from linnet.api import GRAMMAR, GrammarChecker, GrammarError, Sample
from linnet.api.sessions import Visit
from linnet.engine import EngineUnavailableError
from linnet.errors import LinnetError
from linnet.serve.admission import Admission, Ticket
from linnet.serve.answers import JsonAnswer, encode_answer
from linnet.serve.body import Receive, check_content_type, read_body
from linnet.serve.bridge import Bridge, Job
from linnet.serve.conversations import Conversations
from linnet.serve.errors import ApiError, from_exception, from_info, gone, invalid, timed_out, unavailable
from linnet.serve.metrics import Metrics
from linnet.serve.preparing import ModelFacts, Prepared, Preparer
from linnet.serve.sampling import grammar_error, parameter_names
from linnet.serve.shapes import Shape
from linnet.serve.streaming import EventStream, Stream
from linnet.settings import ServeConfig

T = TypeVar("T")
MakeShape = Callable[[Prepared, ModelFacts, str], Shape]
WORKERS = 2
SHORT_BYTES = 16 << 10
"""A body of at most so many bytes is prepared at once, whatever long ones are being read."""
LONG_NICENESS = 10
MOST_TIMEOUT_S = 1e6


class Departure:
    """Watches a connection after its body has been read, and calls ``on_leave`` once when the client closes it."""

    def __init__(self, receive: Receive) -> None:
        self.left = False
        self.on_leave: Callable[[], None] | None = None
        self._task = asyncio.get_running_loop().create_task(self._watch(receive))

    async def _watch(self, receive: Receive) -> None:
        while (await receive())["type"] != "http.disconnect":
            pass
        self.left = True
        if self.on_leave is not None:
            self.on_leave()

    def stop(self) -> None:
        """The answer is out; a later close means nothing."""
        self._task.cancel()


class Generation:
    """Serves generating requests; also runs other endpoints' work in its worker threads (``with_body``)."""

    def __init__(
        self,
        preparer: Preparer,
        bridge: Bridge,
        admission: Admission,
        metrics: Metrics,
        conversations: Conversations,
        grammars: GrammarChecker,
        config: ServeConfig,
    ) -> None:
        self.preparer, self._bridge, self._admission = preparer, bridge, admission
        self._conversations, self._grammars = conversations, grammars
        self._metrics, self._config = metrics, config
        self._pool = ThreadPoolExecutor(WORKERS, "linnet-text")
        self._long_pool = ThreadPoolExecutor(WORKERS, "linnet-long-text", _step_back)

    def close(self) -> None:
        """End the worker threads, and the process that checks grammars."""
        self._grammars.close()
        for pool in (self._pool, self._long_pool):
            pool.shutdown(wait=False, cancel_futures=True)

    async def with_body(self, request: Request, work: Callable[[bytes], T]) -> T:
        """Read the body and run ``work`` on it in a worker thread, inside the bounded queue. Raises ApiError."""
        check_content_type(request.headers.raw)
        ticket = self._admission.enter()
        try:
            body = await self._body(request, ticket)
            return await self._run(request, partial(work, body), None, len(body))
        finally:
            ticket.leave()

    async def answer(
        self, request: Request, prepare: Callable[[bytes, Visit], Prepared], make_shape: MakeShape
    ) -> Response:
        """A completion or chat completion, streamed or not. Raises ApiError."""
        arrival_s = time.monotonic()
        check_content_type(request.headers.raw)
        asked_s = _header_timeout(request)
        with ExitStack() as stack:
            ticket = self._admission.enter()
            stack.callback(ticket.leave)
            visit = self._conversations.sessions.visit(request.state.salt)
            stack.callback(visit.close)
            body = await self._body(request, ticket)
            work, size = partial(prepare, body, visit), len(body)
            del body
            departure = Departure(request.receive)
            stack.callback(departure.stop)
            prepared = await self._run(request, work, self._left_s(arrival_s, asked_s), size)
            del work  # the body's bytes
            prepared = await self._checked(request, prepared, self._left_s(arrival_s, asked_s))
            self._metrics.preparation_s.observe(time.monotonic() - arrival_s)
            self._metrics.request_samples.observe(prepared.params.n)
            asked_s = min_of(asked_s, _field_timeout(prepared))
            job = await self._submit(request, prepared, ticket, arrival_s, asked_s)
            stack.callback(job.close)
            request.state.record.sent(prepared, job)
            departure.on_leave = job.leave
            if departure.left:
                job.leave()
            stack.callback(lambda: self._metrics.aborted.inc() if job.left else None)
            request_id: str = request.state.request_id
            shape = make_shape(prepared, self.preparer.facts, request_id)

            def failure(sample: Sample) -> ApiError:
                return self._failure(sample, prepared, request_id)

            async def complete() -> None:
                await self._complete(request, prepared, job)

            if prepared.request.stream:
                keep_alive_s = self._config.keep_alive_s or None
                await job.wait(keep_alive_s)
                self._raise_early(job, failure)
                stream = Stream(job, shape, keep_alive_s, prepared.request.include_usage, complete)
                return EventStream(stream.frames(failure, request_id), stack.pop_all())
            await job.finish()
            if job.left:
                raise gone()
            if job.failed is not None:
                raise failure(job.failed)
            await complete()
            return JsonAnswer(await self._run(request, lambda: encode_answer(shape.whole(job.samples)), None))

    async def _checked(self, request: Request, prepared: Prepared, within_s: float | None) -> Prepared:
        """With a grammar that can be used, if it has one, else 400 naming the parameter. Beside the worker threads: a
        text never waits."""
        if prepared.grammar is None:
            return prepared
        try:
            async with asyncio.timeout(within_s):
                await asyncio.wrap_future(self._grammars.check(prepared.grammar))
            return prepared
        except TimeoutError:
            raise timed_out() from None
        except GrammarError as error:
            if prepared.loose_grammar is not None and error.beyond:
                looser = replace(prepared, grammar=prepared.loose_grammar, loose_grammar=None)
                return await self._checked(request, looser, within_s)
            raise grammar_error(error, parameter_names(prepared.request)[GRAMMAR]) from None
        except LinnetError as error:
            raise from_exception(error, request.state.request_id) from None

    async def _body(self, request: Request, ticket: Ticket) -> bytes:
        limits = self._config.limits
        return await read_body(request.headers.raw, request.receive, limits.body_bytes, limits.body_s, ticket)

    async def _run(self, request: Request, work: Callable[[], T], within_s: float | None, size: int = 0) -> T:
        """``work`` in a worker thread; it is bounded by its own limits, so a deadline may leave it to its end.

        What begins with a body of more than SHORT_BYTES has threads of its own, which stand back behind the others.
        """
        pool = self._pool if size <= SHORT_BYTES else self._long_pool
        try:
            async with asyncio.timeout(within_s):
                return await asyncio.get_running_loop().run_in_executor(pool, work)
        except TimeoutError:
            raise timed_out() from None
        except LinnetError as error:
            raise from_exception(error, request.state.request_id) from None

    async def _submit(
        self, request: Request, prepared: Prepared, ticket: Ticket, arrival_s: float, asked_s: float | None
    ) -> Job:
        salt: bytes = request.state.salt
        count = len(prepared.prompts) * prepared.params.n
        place = parameter_names(prepared.request).get("prompt", "prompt")
        # Before thousands of samples are built in vain.
        ticket.check(count, prepared.prompt_tokens, ("n" if prepared.params.n > 1 else place, place))
        samples = await self._run(
            request,
            lambda: self.preparer.samples(prepared, salt, self._left_s(arrival_s, asked_s)),
            self._left_s(arrival_s, asked_s),
        )
        ticket.take(count, prepared.prompt_tokens)
        self._conversations.keep_modules(prepared, samples[0].submit)
        try:
            return self._bridge.submit(samples, ticket, arrival_s)
        except EngineUnavailableError as error:
            raise unavailable(str(error)) from None

    async def _complete(self, request: Request, prepared: Prepared, job: Job) -> None:
        """Every sample has its proper end: the turn, if it is one, belongs to its session."""
        turn = prepared.turn
        if turn is not None:
            request_id: str = request.state.request_id
            await self._run(
                request, lambda: turn.take(job.samples[0], answered(prepared, job.samples[0], request_id)), None
            )

    def _left_s(self, arrival_s: float, asked_s: float | None) -> float | None:
        """Seconds until the deadline. Raises ApiError 504 when there are none."""
        most_s = min_of(asked_s, self._config.limits.deadline_s)
        if most_s is None:
            return None
        left_s = arrival_s + most_s - time.monotonic()
        if left_s <= 0:
            raise timed_out()
        return left_s

    def _raise_early(self, job: Job, failure: Callable[[Sample], ApiError]) -> None:
        if job.left:
            raise gone()
        bad = job.failed
        if bad is not None and not any(sample.stream.token_ids for sample in job.samples):
            raise failure(bad)

    def _failure(self, sample: Sample, prepared: Prepared, request_id: str) -> ApiError:
        stream = sample.stream
        if stream.finish_reason in ("timeout", "queue_timeout"):
            return timed_out(waiting=stream.finish_reason == "queue_timeout")
        if stream.finish_reason == "abort" or stream.error is None:
            return unavailable("the server ended this request: it is shutting down")
        return from_info(stream.error, request_id, parameter_names(prepared.request))


def answered(prepared: Prepared, sample: Sample, request_id: str) -> dict[str, Any] | None:
    """The message that a finished answer comes to; None where that is its text."""
    form = prepared.answer
    return None if form is None else form.message(sample.stream.text, request_id, sample.index)


def _step_back() -> None:
    """The present thread takes what processor time others leave (on Linux priorities are each thread's own)."""
    with suppress(OSError):
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), LONG_NICENESS)


def min_of(*values: float | None) -> float | None:
    """The smallest that is given."""
    return min((value for value in values if value is not None), default=None)


def _header_timeout(request: Request) -> float | None:
    text = request.headers.get("x-request-timeout")
    if text is None:
        return None
    try:
        value = float(text) if len(text) <= 32 else math.nan
    except ValueError:
        value = math.nan
    return _checked_timeout(value, "x-request-timeout")


def _field_timeout(prepared: Prepared) -> float | None:
    value = prepared.request.timeout_s
    return None if value is None else _checked_timeout(value, "timeout_s")


def _checked_timeout(value: float, name: str) -> float:
    if not 0 < value <= MOST_TIMEOUT_S:  # NaN fails too
        raise invalid(f"{name} must be a number of seconds above 0 and at most {MOST_TIMEOUT_S:g}", name)
    return value
