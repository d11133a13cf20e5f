# SPDX-License-Identifier: Apache-2.0
"""Compiles grammars beside the engine: a thread that is never the step's, started when the first one comes.

Its stack is large: how deep a compiler goes is decided by whoever wrote the grammar.
"""

import threading
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import suppress
from queue import SimpleQueue
from typing import TYPE_CHECKING

from linnet.engine.matcher import Matcher
from linnet.engine.vocabulary import Vocabulary

if TYPE_CHECKING:
    from linnet.engine.guidance import Compiler

STACK_BYTES = 64 << 20
"""Of address space; only what is used is taken."""


class CompiledGrammars:
    """Grammars over one vocabulary, one after the other. From any thread."""

    def __init__(self, vocabulary: Callable[[], Vocabulary], stack_bytes: int = STACK_BYTES) -> None:
        """``vocabulary`` is asked once, in the thread, when the first grammar comes; it may block."""
        self._vocabulary, self._stack_bytes = vocabulary, stack_bytes
        self._asked: SimpleQueue[tuple[str, Future[Matcher]] | None] = SimpleQueue()
        self._starting = threading.Lock()
        self._thread: threading.Thread | None = None
        self._compiler: Compiler | None = None

    def matcher(self, grammar: str) -> "Future[Matcher]":
        """See ``Grammars``."""
        future: Future[Matcher] = Future()
        self._asked.put((grammar, future))
        with self._starting:
            if self._thread is None:
                self._thread = _start_with_stack(self._run, self._stack_bytes)
        return future

    def close(self) -> None:
        """End the thread when it has answered."""
        self._asked.put(None)

    def _run(self) -> None:
        while (asked := self._asked.get()) is not None:
            grammar, future = asked
            if not future.set_running_or_notify_cancel():
                continue
            try:
                future.set_result(self._made(grammar))
            except BaseException as error:  # the library's own panics are no Exception
                future.set_exception(error if isinstance(error, Exception) else RuntimeError(type(error).__name__))

    def _made(self, grammar: str) -> Matcher:
        if self._compiler is None:
            from linnet.engine.guidance import Compiler  # here: see there

            self._compiler = Compiler(self._vocabulary())
        return self._compiler.matcher(grammar)


def _start_with_stack(run: Callable[[], None], stack_bytes: int) -> threading.Thread:
    thread = threading.Thread(target=run, name="linnet-grammars", daemon=True)
    before = threading.stack_size(stack_bytes)
    try:
        thread.start()
    finally:
        with suppress(ValueError):
            threading.stack_size(before)
    return thread
