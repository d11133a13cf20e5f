# SPDX-License-Identifier: Apache-2.0
"""Conversations kept between turns: who asks sends the new turn only, and gets what the whole conversation would get.

A store above the engine's door. A turn is a request for the whole conversation, made of what the session holds and
what is new, so it cannot come out otherwise than if all had been sent again; the engine finds its keys and values in
the prefix cache, where the owner of the session keeps them (``Keep``). A session belongs to a tenant: to others its id
is unknown. May be used from several threads.
"""

import re
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from hashlib import blake2b
from typing import Any, Literal, Protocol

from linnet.api.generation import Sample
from linnet.engine import Keep, ParameterError
from linnet.settings import SessionLimits

Content = tuple[Mapping[str, Any], ...] | str | tuple[int, ...]
"""What a conversation holds: messages, a text, or token ids."""
Form = Literal["messages", "text", "token_ids"]

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:-]{0,127}")
"""What sessions and prompt modules may be called."""


class SessionUnknownError(ParameterError):
    """There is no such session, or not for this tenant."""

    code = "session_not_found"
    http_status = 404


class SessionConflictError(ParameterError):
    """The session is not as the request takes it to be: in another turn, or not that far."""

    code = "session_conflict"
    http_status = 409


class SessionsFullError(ParameterError):
    """The tenant has as many sessions as it may have. ``retry_after_s``: until its oldest one ends of itself."""

    code = "session_limit"
    http_status = 429

    def __init__(self, message: str, retry_after_s: float) -> None:
        super().__init__("session", message)
        self.retry_after_s = retry_after_s


@dataclass(frozen=True, slots=True, kw_only=True)
class Session:
    """A conversation between two turns. Times are seconds since 1970.

    modules: the names of the prompt modules that its first turn began with; their texts are in the content.
    """

    id: str
    tenant: bytes
    form: Form
    content: Content
    modules: tuple[str, ...] = ()
    turns: int
    created_s: float
    used_s: float

    @property
    def owner(self) -> bytes:
        """Whose keys and values the engine is to keep."""
        return owner_of(self.tenant, self.id)


class Archive(Protocol):
    """Where sessions lie for later; errors are its own business."""

    def save(self, session: Session) -> None: ...
    def remove(self, owner: bytes) -> None: ...
    def load(self) -> Iterator[Session]: ...


@dataclass(slots=True)
class _Entry:
    session: Session | None  # None: in its first turn
    busy: bool = False


class Sessions:
    """The conversations of all tenants: begun, continued, looked at, deleted, and forgotten when nobody comes back."""

    def __init__(
        self,
        limits: SessionLimits,
        tell: Callable[[Keep], None] = lambda keep: None,
        archive: Archive | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        """``tell`` has the engine keep what a turn has computed, and nothing of a session that is deleted or was not
        used for too long. It is called in the order in which these happen, whoever comes in between, and must not wait.
        What ``archive`` holds is taken up; nothing there counts as used later than now."""
        self.limits = limits
        self.turns = 0
        """Turns that were taken in."""
        self._tell, self._archive, self._clock = tell, archive, clock
        self._lock = threading.RLock()
        self._entries: dict[tuple[bytes, str], _Entry] = {}  # who was used least recently stands first
        self._count: Counter[bytes] = Counter()  # by tenant
        now_s = clock()
        for session in sorted(() if archive is None else archive.load(), key=lambda one: one.used_s):
            if session.used_s > now_s:  # a clock was set back; it would keep all that is used after it from ending
                session = replace(session, used_s=now_s)
            self._entries[session.tenant, session.id] = _Entry(session)
            self._count[session.tenant] += 1

    def __len__(self) -> int:
        """How many there are, those in their first turn included."""
        return len(self._entries)

    def visit(self, tenant: bytes) -> "Visit":
        """One request's dealings with the store; ``close`` it whatever happens."""
        return Visit(self, tenant)

    def all_of(self, tenant: bytes) -> tuple[Session, ...]:
        """The tenant's sessions, the least recently used first."""
        with self._lock:
            self.expire()
            mine = (entry.session for (owner, _), entry in self._entries.items() if owner == tenant)
            return tuple(session for session in mine if session is not None)

    def get(self, tenant: bytes, session_id: str) -> Session:
        """Raises SessionUnknownError, for one in its first turn too."""
        with self._lock:
            self.expire()
            entry = self._entries.get((tenant, session_id))
            if entry is None or entry.session is None:
                raise _unknown()
            return entry.session

    def delete(self, tenant: bytes, session_id: str) -> None:
        """Forget it. Raises SessionUnknownError, and SessionConflictError while it is in a turn."""
        with self._lock:
            self.expire()
            entry = self._entries.get((tenant, session_id))
            if entry is None:
                raise _unknown()
            if entry.busy:
                raise _busy()
            self._forget(tenant, session_id)

    def expire(self) -> None:
        """Forget those that were not used for longer than they are kept."""
        with self._lock:
            last_s = self._clock() - self.limits.session_ttl_s
            stale = []
            for key, entry in self._entries.items():
                if entry.busy:
                    continue
                if entry.session is not None and entry.session.used_s >= last_s:
                    break
                stale.append(key)
            for key in stale:
                self._forget(*key)

    # For visits, under the lock.

    def _begin(self, tenant: bytes, session_id: str) -> _Entry:
        self.expire()
        entry = self._entries.get((tenant, session_id))
        if entry is not None:
            if entry.busy:
                raise _busy()
            return entry
        if self._count[tenant] >= self.limits.max_sessions:
            raise self._full(tenant)
        entry = self._entries[tenant, session_id] = _Entry(None)
        self._count[tenant] += 1
        return entry

    def _full(self, tenant: bytes) -> SessionsFullError:
        if not self.limits.max_sessions:
            return SessionsFullError("this server keeps no sessions; send the whole conversation", 0.0)
        ends = (entry.session for (owner, _), entry in self._entries.items() if owner == tenant)
        oldest_s = min((one.used_s for one in ends if one is not None), default=self._clock())
        return SessionsFullError(
            f"{self._count[tenant]} sessions are kept, the most there may be; delete one, or wait until one was not "
            f"used for {self.limits.session_ttl_s:g} s",
            max(oldest_s + self.limits.session_ttl_s - self._clock(), 0.0),
        )

    def _commit(self, session: Session, keep: Keep | None) -> None:
        key = session.tenant, session.id
        del self._entries[key]
        self._entries[key] = _Entry(session)
        self.turns += 1
        if keep is not None:
            self._tell(keep)

    def _abandon(self, tenant: bytes, session_id: str) -> None:
        entry = self._entries[tenant, session_id]
        entry.busy = False
        if entry.session is None:
            self._remove(tenant, session_id)

    def _forget(self, tenant: bytes, session_id: str) -> None:
        self._remove(tenant, session_id)
        owner = owner_of(tenant, session_id)
        if self._archive is not None:
            self._archive.remove(owner)
        self._tell(Keep(owner=owner))

    def _remove(self, tenant: bytes, session_id: str) -> None:
        del self._entries[tenant, session_id]
        self._count[tenant] -= 1
        if not self._count[tenant]:
            del self._count[tenant]


class Visit:
    """A request and the session it names, if it names one: ``open``, then ``commit`` or not, ``close`` at the end.

    Whatever ends the request before ``commit`` leaves the session as it was; one that began with it is gone. While it
    is open no other request gets the session.
    """

    def __init__(self, sessions: Sessions, tenant: bytes) -> None:
        self.session_id: str | None = None
        self.turn = 0
        """The number of this turn, from 1."""
        self._sessions, self._tenant = sessions, tenant
        self.modules: tuple[str, ...] = ()
        """The modules that the conversation begins with."""
        self._form: Form = "messages"
        self._before: Session | None = None
        self._closed = False

    @property
    def owner(self) -> bytes:
        """Of what the engine is to keep."""
        assert self.session_id is not None
        return owner_of(self._tenant, self.session_id)

    def open(
        self, session_id: str, form: Form, modules: tuple[str, ...] = (), turns: int | None = None
    ) -> Content | None:
        """What the session holds before this turn; None: it is new.

        ``turns``: how many it is to have, if the client says so; ``modules`` begin a new one, and may be named again.
        Raises ParameterError, SessionConflictError, SessionsFullError.
        """
        if not NAME.fullmatch(session_id):
            raise ParameterError(
                "session",
                "session must be 1 to 128 of the characters A-Z a-z 0-9 . _ : - and begin with a letter or digit",
            )
        sessions = self._sessions
        with sessions._lock:
            if self._closed:  # the request has ended meanwhile; nothing may be left behind
                raise SessionConflictError("session", "the request has ended")
            entry = sessions._begin(self._tenant, session_id)
            entry.busy, self.session_id, self._before = True, session_id, entry.session
            before = entry.session
            self._form, self.modules = form, modules
            self.turn = 1 + (0 if before is None else before.turns)
            if turns is not None and turns != self.turn - 1:
                raise SessionConflictError(
                    "session_turns", f"the session has {self.turn - 1} turns and the request says {turns}"
                )
            if before is None:
                return None
            if before.form != form:
                raise ParameterError(
                    "session", f"the session holds {_FORMS[before.form]} and this turn is {_FORMS[form]}"
                )
            if modules and modules != before.modules:
                named = ", ".join(before.modules) or "none"
                raise ParameterError(
                    "prompt_modules",
                    f"prompt_modules are chosen in a session's first turn; this one began with {named}",
                )
            self.modules = before.modules
            return before.content

    def commit(self, content: Content, keep: Keep | None = None) -> bool:
        """The turn is complete: this is the conversation now, answer included. The session is free again.

        ``keep``: what the engine is to keep of it from now on. False where it was closed before. Writes a file where
        sessions outlive the process; nobody else waits for that. A file that cannot be made leaves no turn.
        """
        sessions = self._sessions
        with sessions._lock:
            if self._closed or self.session_id is None:
                return False
            self._closed = True
        now_s = sessions._clock()
        session = Session(
            id=self.session_id,
            tenant=self._tenant,
            form=self._form,
            content=content,
            modules=self.modules,
            turns=self.turn,
            created_s=now_s if self._before is None else self._before.created_s,
            used_s=now_s,
        )
        try:
            if sessions._archive is not None:
                sessions._archive.save(session)
        except BaseException:
            with sessions._lock:
                sessions._abandon(self._tenant, self.session_id)
            raise
        with sessions._lock:
            sessions._commit(session, keep)
        return True

    def close(self) -> None:
        """The request has ended. Idempotent."""
        with self._sessions._lock:
            if not self._closed and self.session_id is not None:
                self._sessions._abandon(self._tenant, self.session_id)
            self._closed = True


_FORMS: Mapping[Form, str] = {"messages": "chat messages", "text": "a text", "token_ids": "token ids"}


def owner_of(tenant: bytes, session_id: str) -> bytes:
    """A name for a session that no other tenant's has, and that shows neither."""
    return blake2b(session_id.encode(), key=blake2b(tenant).digest(), digest_size=32, person=b"linnet-session").digest()


@dataclass(frozen=True, slots=True)
class Turn:
    """A turn of a session whose prompt has been made: the conversation up to its answer."""

    visit: Visit
    form: Form
    content: Content

    def take(self, sample: Sample, message: Mapping[str, Any] | None = None) -> bool:
        """The answer is complete: it belongs to the conversation, and the engine keeps what the sample has computed.
        ``message``: what it comes to, where that is more than its text.

        False: nothing was taken, since the sample has no proper end or the visit was closed.
        """
        stream, submit = sample.stream, sample.submit
        if stream.finish_reason not in ("stop", "length"):
            return False
        keep = Keep(
            owner=self.visit.owner,
            token_ids=(*submit.prompt_token_ids, *stream.token_ids),
            cache_salt=submit.cache_salt,
            shared_tokens=submit.shared_tokens,
            adapter=submit.adapter,
        )
        answer = answer_of(self.form, sample) if message is None else (message,)
        return self.visit.commit(joined(self.content, answer), keep)


def form_of(content: Content) -> Form:
    """Which of the three it is; nothing at all counts as token ids."""
    if isinstance(content, str):
        return "text"
    return "messages" if content and isinstance(content[0], Mapping) else "token_ids"


def answer_of(form: Form, sample: Sample) -> Content:
    """What a finished sample adds to a conversation: what a client would send back of it."""
    if form == "messages":
        return ({"role": "assistant", "content": sample.stream.text},)
    return sample.stream.text if form == "text" else tuple(sample.stream.token_ids)


def joined(before: Content, new: Content) -> Content:
    """Both of one form."""
    return before + new  # type: ignore[operator]


def check_single(samples: int) -> None:
    """A conversation goes on from one answer. Raises ParameterError."""
    if samples != 1:
        raise ParameterError(
            "n", f"n is {samples}; with a session accepted is 1: a conversation goes on from one answer"
        )


def check_answered(*, add_generation_prompt: bool | None, continue_final_message: bool | None) -> None:
    """A turn of a chat is answered by a new message. Raises ParameterError."""
    if continue_final_message or add_generation_prompt is False:
        raise ParameterError("session", "in a session every turn is answered by a message of the assistant's own")


def _unknown() -> SessionUnknownError:
    return SessionUnknownError("session", "there is no such session")


def _busy() -> SessionConflictError:
    return SessionConflictError("session", "the session is in a turn; wait for its answer, or end that request")
