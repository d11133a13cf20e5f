# SPDX-License-Identifier: Apache-2.0
"""What a child process runs to try grammars before an engine has them: whatever they do, they do it here.

A grammar that never comes to an end, takes all memory or overflows the stack is the end of this process, and of no
other. Down: the vocabulary, then grammars, one at a time. Up: for each what is wrong with it, or nothing.
"""

import os
import resource
import socket
from contextlib import suppress
from pathlib import Path

import msgspec
import numpy as np

from linnet.engine.grammars import CompiledGrammars
from linnet.engine.matcher import Matcher, mask_words
from linnet.engine.vocabulary import Vocabulary
from linnet.engine.wire import Channel, rich
from linnet.errors import LinnetError

STACK_BYTES = 32 << 20
"""Half of what an engine has: what passed here is no danger there."""
MOST_BYTES = 2 << 30
"""Of address space beyond what the process has when it is ready."""
TRIED_TOKENS = 32


def main(connection: socket.socket) -> None:
    """Try what comes over ``connection``; never returns."""
    channel = Channel(connection)
    with suppress(Exception):
        vocabulary = channel.receive(msgspec.msgpack.Decoder(Vocabulary, dec_hook=rich))
        if vocabulary is not None:
            _serve(channel, vocabulary)
    os._exit(0)


def _serve(channel: Channel, vocabulary: Vocabulary) -> None:
    grammars = CompiledGrammars(lambda: vocabulary, STACK_BYTES)
    _problem(grammars, "start: /[a]/", vocabulary)  # the library and the vocabulary's tree are there now
    used = resource.getpagesize() * int(Path("/proc/self/statm").read_text().split()[0])
    resource.setrlimit(resource.RLIMIT_AS, (used + MOST_BYTES, used + MOST_BYTES))
    channel.send(channel.encode(""))
    decoder = msgspec.msgpack.Decoder(str)
    while (grammar := channel.receive(decoder)) is not None:
        channel.send(channel.encode(_problem(grammars, grammar, vocabulary)))


def _problem(grammars: CompiledGrammars, grammar: str, vocabulary: Vocabulary) -> str:
    try:
        _try(grammars.matcher(grammar).result(), vocabulary)
    except LinnetError as error:
        return str(error)
    except Exception as error:
        return f"the grammar cannot be used ({type(error).__name__})"
    return ""


def _try(matcher: Matcher, vocabulary: Vocabulary) -> None:
    """Write the beginning of some text that it allows; one that allows none cannot be used. Raises LinnetError."""
    ends = frozenset(vocabulary.eos_ids)
    for _ in range(TRIED_TOKENS):
        allowed = np.zeros(mask_words(vocabulary.size), np.uint32)
        if not matcher.fill(allowed, ends):
            return
        word = int(np.flatnonzero(allowed)[0])
        token_id = 32 * word + (int(allowed[word]) & -int(allowed[word])).bit_length() - 1
        if token_id in ends:
            return
        matcher.accept(token_id)
