# SPDX-License-Identifier: Apache-2.0
"""Open files: a connection is one, and shells usually allow a program 1,024 of them until it asks for more."""

import resource

SPARE = 256
"""For the model's files, the event loop, and connections that are told that there are too many."""


def room_for_connections(wanted: int) -> int:
    """Raise this process's soft limit of open files, where its hard limit allows it; returns the connections that fit.

    At most ``wanted``, at least 1.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = wanted + SPARE
    if soft != resource.RLIM_INFINITY and soft < needed:
        asked = needed if hard == resource.RLIM_INFINITY else min(needed, hard)
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (asked, hard))
            soft = asked
        except (OSError, ValueError):  # forbidden from outside: what there is must do
            pass
    if soft == resource.RLIM_INFINITY:
        return wanted
    return max(1, min(wanted, soft - SPARE))
