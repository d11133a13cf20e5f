# SPDX-License-Identifier: Apache-2.0
"""The engine's messages between two processes: msgpack through msgspec, typed at both ends, one length before each.

A frame is four bytes (length, little endian) and so many bytes of msgpack. Numbers arrive as they were sent, bit for
bit. Whoever reads a frame that is cut off, too long or of another form gets a FrameError: the peer is not what it
should be, and the conversation is over.
"""

import socket
from typing import Any, Literal, TypeVar

import msgspec
import numpy as np

from linnet.engine.facts import EngineFacts
from linnet.engine.messages import (
    Abort,
    Control,
    EngineEvent,
    EngineMessage,
    Finished,
    Keep,
    LoadAdapter,
    Submit,
    UnloadAdapter,
)
from linnet.engine.vocabulary import Vocabulary
from linnet.errors import LinnetError
from linnet.process_memory import Footprint
from linnet.scheduler import SchedulerCounters, Tokens

MOST_FRAME_BYTES = 1 << 30
_HEAD_BYTES = 4
_BUFFER_BYTES = 1 << 16

T = TypeVar("T")


class FrameError(Exception):
    """What came is no frame, or none that was expected."""


class _Frame(msgspec.Struct, frozen=True, array_like=True, tag=True, gc=False):
    """Structs that are sent as arrays, the first item saying which."""


class SubmitFrame(_Frame, frozen=True, tag="submit"):
    """Down: a request."""

    message: Submit


class AbortFrame(_Frame, frozen=True, tag="abort"):
    """Down."""

    request_id: int


class KeepFrame(_Frame, frozen=True, tag="keep"):
    """Down: what is to be kept."""

    message: Keep


class LoadAdapterFrame(_Frame, frozen=True, tag="load_adapter"):
    """Down: what is to be loaded."""

    message: LoadAdapter


class UnloadAdapterFrame(_Frame, frozen=True, tag="unload_adapter"):
    """Down."""

    adapter: int


class ControlFrame(_Frame, frozen=True, tag="control"):
    """Down."""

    action: Literal["drain", "abort_all", "forget_prefixes"]


class VocabularyFrame(_Frame, frozen=True, tag="vocabulary"):
    """Down, once, before the first request with a grammar: what tokens stand for."""

    vocabulary: Vocabulary


MessageFrame = SubmitFrame | AbortFrame | KeepFrame | LoadAdapterFrame | UnloadAdapterFrame | ControlFrame
"""What a message travels in."""
Down = MessageFrame | VocabularyFrame


class ReadyFrame(_Frame, frozen=True, tag="ready"):
    """Up, first: the engine takes messages; all that is known of it outside.

    ``footprint``: what it will take of memory; ``counters``: of an engine that has done nothing.
    """

    facts: EngineFacts
    numerics_id: str
    footprint: Footprint
    counters: SchedulerCounters

    def is_of_the_same(self, other: "ReadyFrame") -> bool:
        """Whether both are of one model, opened alike; what their processes had before may differ, and what they found
        in the file of an earlier one."""
        own, theirs = self.footprint, other.footprint
        alike = msgspec.structs.replace(other, footprint=own, counters=self.counters)
        return self == alike and own.kv_bytes == theirs.kv_bytes


class RefusedFrame(_Frame, frozen=True, tag="refused"):
    """Up, first and last: there is no engine; the error that said so (a LinnetError as its four parts)."""

    kind: str
    message: str
    settings: tuple[str, ...] = ()
    reasons: tuple[str, ...] = ()


class StepFrame(_Frame, frozen=True, tag="step"):
    """Up: all that a step brought, the tokens before the ends, and the counters after it."""

    tokens: tuple[Tokens, ...]
    ends: tuple[Finished, ...]
    counters: SchedulerCounters
    at_s: float

    @property
    def events(self) -> tuple[EngineEvent, ...]:
        """In an order that keeps every request's."""
        return (*self.tokens, *self.ends)


class BeatFrame(_Frame, frozen=True, tag="beat"):
    """Up, once a second: the process is there, and its present step has taken so long (0: there is none)."""

    stepping_s: float


Up = ReadyFrame | RefusedFrame | StepFrame | BeatFrame


def down(message: EngineMessage) -> MessageFrame:
    """The frame of a message."""
    if isinstance(message, Submit):
        return SubmitFrame(message)
    if isinstance(message, Abort):
        return AbortFrame(message.request_id)
    if isinstance(message, Keep):
        return KeepFrame(message)
    if isinstance(message, LoadAdapter):
        return LoadAdapterFrame(message)
    if isinstance(message, UnloadAdapter):
        return UnloadAdapterFrame(message.adapter)
    return ControlFrame(message.action)


def message_of(frame: MessageFrame) -> EngineMessage:
    """The message in a frame."""
    if isinstance(frame, SubmitFrame | KeepFrame | LoadAdapterFrame):
        return frame.message
    if isinstance(frame, UnloadAdapterFrame):
        return UnloadAdapter(frame.adapter)
    return Abort(frame.request_id) if isinstance(frame, AbortFrame) else Control(frame.action)


def step(events: tuple[EngineEvent, ...], counters: SchedulerCounters, at_s: float) -> StepFrame:
    """One frame of a step's events; within a request the end comes last anyway."""
    tokens = tuple(event for event in events if isinstance(event, Tokens))
    ends = tuple(event for event in events if isinstance(event, Finished))
    return StepFrame(tokens, ends, counters, at_s)


def _plain(value: Any) -> Any:
    if isinstance(value, np.ndarray):
        return value.dtype.str, value.shape, np.ascontiguousarray(value).data.cast("B") if value.size else b""
    if isinstance(value, np.generic):
        return value.item()
    raise TypeError(f"{type(value).__name__} cannot be sent to another process")


def rich(kind: type, value: Any) -> Any:
    """What msgspec asks for what it does not know: arrays. Raises TypeError or ValueError."""
    if kind is np.ndarray:
        dtype, shape, data = value
        if np.dtype(dtype).kind not in "iuf":
            raise ValueError(f"an array of {dtype}")
        return np.frombuffer(data, dtype).reshape(shape)
    raise TypeError(f"{kind.__name__} is not expected here")


class Channel:
    """Frames over a connected stream socket; one thread may send while another receives."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self._reader = connection.makefile("rb", buffering=_BUFFER_BYTES)
        self._encoder = msgspec.msgpack.Encoder(enc_hook=_plain)

    def encode(self, value: Any) -> bytearray:
        """A whole frame, for ``send``. Raises FrameError for one that nobody would take."""
        frame = bytearray(_HEAD_BYTES)
        self._encoder.encode_into(value, frame, _HEAD_BYTES)
        length = len(frame) - _HEAD_BYTES
        if length > MOST_FRAME_BYTES:
            raise FrameError(f"a frame of {length} bytes; accepted are at most {MOST_FRAME_BYTES}")
        frame[:_HEAD_BYTES] = length.to_bytes(_HEAD_BYTES, "little")
        return frame

    def send(self, frame: bytearray) -> None:
        """Blocks while the peer does not read. Raises OSError when it is gone."""
        self._connection.sendall(frame)

    def receive(self, decoder: "msgspec.msgpack.Decoder[T]") -> T | None:
        """The next frame; None at the end of the conversation. Raises FrameError."""
        try:
            head = self._reader.read(_HEAD_BYTES)
            if not head:
                return None
            length = int.from_bytes(head, "little")
            if len(head) < _HEAD_BYTES or length > MOST_FRAME_BYTES:
                raise FrameError(f"a frame of {length} bytes; accepted are at most {MOST_FRAME_BYTES}")
            data = self._reader.read(length)
        except (ConnectionError, ValueError):  # the peer died with bytes of ours unread; closed on our side
            return None
        if len(data) < length:
            raise FrameError(f"a frame was cut off after {len(data)} of {length} bytes")
        try:
            return decoder.decode(data)
        except (msgspec.MsgspecError, LinnetError, TypeError, ValueError, RecursionError) as error:
            raise FrameError(f"a frame of another form ({type(error).__name__})") from error

    def end_sending(self) -> None:
        """The peer reads the end of the conversation, and may still answer."""
        self._connection.shutdown(socket.SHUT_WR)

    def close(self) -> None:
        """Give the reader's buffer back; the socket is the owner's."""
        self._reader.close()


def down_decoder() -> "msgspec.msgpack.Decoder[Down]":
    """Reads what goes to an engine."""
    return msgspec.msgpack.Decoder(Down, dec_hook=rich)


def up_decoder() -> "msgspec.msgpack.Decoder[Up]":
    """Reads what comes from an engine."""
    return msgspec.msgpack.Decoder(Up, dec_hook=rich)
