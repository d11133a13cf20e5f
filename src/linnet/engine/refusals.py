# SPDX-License-Identifier: Apache-2.0
"""Errors that end the opening of an engine, as data and back: who opens one in a process learns the same sentence."""

from linnet.engine.wire import RefusedFrame
from linnet.errors import CapacityError, CheckpointError, ConfigError, LinnetError, UnsupportedError

_KINDS = (ConfigError, CheckpointError, UnsupportedError, CapacityError, LinnetError)


def refused_frame(error: LinnetError) -> RefusedFrame:
    """An error that ended the opening of an engine, as data."""
    kind = next(kind for kind in _KINDS if isinstance(error, kind))
    return RefusedFrame(kind.code, str(error), tuple(error.settings), tuple(getattr(error, "reasons", ())))


def error_of(frame: RefusedFrame) -> LinnetError:
    """The same error on the other side, of the nearest public type."""
    kind = next((kind for kind in _KINDS if kind.code == frame.kind), LinnetError)
    error = kind(frame.message, settings=frame.settings)
    if isinstance(error, UnsupportedError):  # the message lists the reasons already
        error.reasons = frame.reasons
    return error
