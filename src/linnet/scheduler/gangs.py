# SPDX-License-Identifier: Apache-2.0
"""Requests that get tokens only when all of them are computed in one step (beams): who belongs to whom.

A gang is named by the request that comes first in it. Without its members being together nothing comes of any of them,
so they are ordered, admitted and preempted as one.
"""

from collections.abc import Sequence

from .request import Request, RequestState


class Gangs:
    """The gangs of unfinished requests; one without a gang is a gang of its own."""

    def __init__(self) -> None:
        self._members: dict[int, list[Request]] = {}

    def __len__(self) -> int:
        """How many there are of more than themselves."""
        return len(self._members)

    def add(self, request: Request) -> None:
        """A request has come. Members of a gang come one after the other, the first one first."""
        if request.gang is not None:
            self._members.setdefault(request.gang, []).append(request)

    def leader(self, request: Request) -> Request:
        """The request whose place is that of the whole gang. Mutates nothing."""
        return self.members(request)[0]

    def members(self, request: Request) -> Sequence[Request]:
        """Everybody of its gang, in order, itself included. Mutates nothing."""
        return (request,) if request.gang is None else self._members[request.gang]

    def running(self, request: Request) -> list[Request]:
        """Those of its gang that are running, in order. Mutates nothing."""
        return [one for one in self.members(request) if one.state is RequestState.RUNNING]

    def are_together(self, one: Request, other: Request) -> bool:
        """Whether both are of one gang. Mutates nothing."""
        return one.gang is not None and one.gang == other.gang

    def dissolve(self, request: Request) -> None:
        """One has gone, so the others need not wait for it any more. Mutates their `gang`."""
        for one in self._members.pop(request.gang, ()) if request.gang is not None else ():
            one.gang = None
