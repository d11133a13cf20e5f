# SPDX-License-Identifier: Apache-2.0
"""A hook that sees every text before anybody else does, and may end it.

What it has not seen is held back; when it raises, or says what it may not say, its request ends with an error: nothing
goes out unseen.
"""

from collections.abc import Callable
from typing import Literal, get_args

from linnet.engine import ErrorInfo
from linnet.errors import LinnetError

Verdict = Literal["continue", "stop", "end"]
"""continue: show the new text. stop: withhold it and end the sample (finish reason ``policy``). end: show it, and end
the sample as a stop string does (finish reason ``stop``, stop reason ``policy``)."""

Moderate = Callable[[str, str], Verdict]
"""(text shown so far, new text, never empty) -> Verdict. For a server: called from several threads, of a sample in
order; it may take its time, the engine goes on meanwhile."""

VERDICTS = get_args(Verdict)


class ModerationError(LinnetError):
    """The hook failed, or took too long; the request has ended because of that."""

    code = "moderation_failed"
    exit_status = 1
    http_status = 500


def ask(moderate: Moderate, shown: str, fresh: str) -> Verdict | ErrorInfo:
    """What the hook says of ``fresh``, or why it could not be asked."""
    try:
        said = moderate(shown, fresh)
    except Exception as error:
        return failure(f"the moderation hook failed ({type(error).__name__})")
    if said not in VERDICTS:
        return failure(f"the moderation hook said {str(said)[:40]!r}; accepted: {', '.join(VERDICTS)}")
    return said


def failure(sentence: str) -> ErrorInfo:
    """A ModerationError as data."""
    return ErrorInfo(ModerationError.code, sentence, ModerationError.http_status)
