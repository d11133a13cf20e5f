# SPDX-License-Identifier: Apache-2.0
"""Asks a process of its own whether a grammar can be used, within a time; see grammar_child.

The process is started with the first grammar and again after one that it did not survive. A thread of this class starts
and asks it: nobody else waits for a grammar.
"""

import select
from collections import OrderedDict
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from hashlib import sha256

import msgspec

from linnet.child_process import ChildProcess, start_child
from linnet.engine.matcher import GrammarError
from linnet.engine.messages import EngineUnavailableError
from linnet.engine.vocabulary import Vocabulary
from linnet.engine.wire import Channel, FrameError

CHILD_MODULE = "linnet.engine.grammar_child"
MOST_REMEMBERED = 4096
READY_S = 60.0


class GrammarChecker:
    """Answers whether a grammar can be used and remembers the last MOST_REMEMBERED answers. ``close`` it."""

    def __init__(
        self,
        vocabulary: Callable[[], Vocabulary],
        *,
        within_s: float = 1.0,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        """``within_s``: the longest that a grammar may take to compile."""
        self._vocabulary, self._within_s, self._environment = vocabulary, within_s, environment
        self._said: OrderedDict[bytes, str] = OrderedDict()
        self._child: tuple[ChildProcess, Channel] | None = None
        self._thread = ThreadPoolExecutor(1, "linnet-grammar-checks")
        self._decoder = msgspec.msgpack.Decoder(str)

    def check(self, grammar: str) -> "Future[None]":
        """Done when it is known to be one that an engine may be given; raises GrammarError for another."""
        return self._thread.submit(self._check, grammar)

    def close(self) -> None:
        """End the process; what is still asked is not answered."""
        self._thread.submit(self._end)
        self._thread.shutdown(wait=False)

    def _check(self, grammar: str) -> None:
        name = sha256(grammar.encode("utf-8", "surrogatepass")).digest()
        problem = self._said.get(name)
        if problem is None:
            problem = self._said[name] = self._asked(grammar)
            if len(self._said) > MOST_REMEMBERED:
                self._said.popitem(last=False)
        else:
            self._said.move_to_end(name)
        if problem:
            raise GrammarError(problem)

    def _asked(self, grammar: str) -> str:
        process, channel = self._child or self._started()
        try:
            channel.send(channel.encode(grammar))
            if not select.select([process.connection], [], [], self._within_s)[0]:
                self._end()
                return f"the grammar takes longer than {self._within_s:g} s to compile"
            answer = channel.receive(self._decoder)
        except (OSError, FrameError):
            answer = None
        if answer is None:
            self._end()
            return "the grammar is too complex: compiling it takes more memory than there is for one"
        return answer

    def _started(self) -> tuple[ChildProcess, Channel]:
        """Raises EngineUnavailableError."""
        process = start_child(CHILD_MODULE, self._environment)
        channel = Channel(process.connection)
        self._child = process, channel
        try:
            channel.send(channel.encode(self._vocabulary()))
            ready = select.select([process.connection], [], [], READY_S)[0] and channel.receive(self._decoder) == ""
        except (OSError, FrameError):
            ready = False
        if not ready:
            self._end()
            raise EngineUnavailableError("the process that checks grammars cannot be started")
        return self._child

    def _end(self) -> None:
        if self._child is not None:
            process, channel = self._child
            self._child = None
            process.kill()
            process.end()
            channel.close()
