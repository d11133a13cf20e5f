# SPDX-License-Identifier: Apache-2.0
"""How our own defects are logged: type and places, never the message or values, which may hold a prompt."""

import logging
import traceback

logger = logging.getLogger("linnet.serve")


def log_defect(where: str, error: BaseException) -> None:
    """One record: ``where`` (a request id), the type, and the frames, innermost last."""
    frames = traceback.extract_tb(error.__traceback__)
    places = " < ".join(f"{frame.name} ({frame.filename.rpartition('/')[2]}:{frame.lineno})" for frame in frames[::-1])
    logger.error("%s failed: %s in %s", where, type(error).__name__, places)
