# SPDX-License-Identifier: Apache-2.0
"""How our own defects are logged: type and places, never the message or values, which may hold a prompt."""

import logging

from linnet.errors import defect

logger = logging.getLogger("linnet.serve")


def log_defect(where: str, error: BaseException) -> None:
    """One record: ``where`` (a request id), the type, and the frames, innermost last."""
    logger.error("%s failed: %s", where, defect(error))
