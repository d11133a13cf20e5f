# SPDX-License-Identifier: Apache-2.0
"""The store of conversations: turns, tenants, bounds, ends, and files."""

import json
import os
import stat
import threading
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from linnet.api import session_files
from linnet.api.session_files import SessionFiles
from linnet.api.sessions import (
    Session,
    SessionConflictError,
    Sessions,
    SessionsFullError,
    SessionUnknownError,
    owner_of,
)
from linnet.engine import Keep, ParameterError
from linnet.errors import CheckpointError, ConfigError
from linnet.settings import SessionLimits


class Clock:
    now_s = 1000.0

    def __call__(self) -> float:
        return self.now_s


def turn(sessions: Sessions, session_id: str, new: Any, tenant: bytes = b"me", form: Any = "text") -> Any:
    """A complete turn; returns what the session held before it."""
    visit = sessions.visit(tenant)
    before = visit.open(session_id, form)
    assert visit.commit(new if before is None else before + new)
    visit.close()
    return before


def test_a_turn_goes_on_from_the_last() -> None:
    sessions = Sessions(SessionLimits(), clock=Clock())
    assert turn(sessions, "a", "one ") is None
    assert turn(sessions, "a", "two ") == "one "
    assert turn(sessions, "a", "three") == "one two "
    assert turn(sessions, "b", "other") is None
    assert sessions.get(b"me", "a").content == "one two three"
    assert sessions.get(b"me", "a").turns == 3
    assert (len(sessions), sessions.turns) == (2, 4)


def test_what_is_not_committed_has_not_happened() -> None:
    sessions = Sessions(SessionLimits())
    turn(sessions, "a", "one")
    visit = sessions.visit(b"me")
    assert visit.open("a", "text") == "one"
    visit.close()
    visit.close()
    assert not visit.commit("too late")
    assert sessions.get(b"me", "a").content == "one"
    fresh = sessions.visit(b"me")
    assert fresh.open("b", "text") is None
    assert len(sessions) == 2
    fresh.close()
    assert len(sessions) == 1
    with pytest.raises(SessionUnknownError):
        sessions.get(b"me", "b")


def test_a_request_that_ended_before_it_opened_leaves_nothing() -> None:
    sessions = Sessions(SessionLimits())
    visit = sessions.visit(b"me")
    visit.close()
    with pytest.raises(SessionConflictError):
        visit.open("a", "text")
    assert len(sessions) == 0


@pytest.mark.parametrize("turns", [0, 1])
def test_one_turn_at_a_time(turns: int) -> None:
    sessions = Sessions(SessionLimits())
    for _ in range(turns):
        turn(sessions, "a", "one")
    first, second = sessions.visit(b"me"), sessions.visit(b"me")
    first.open("a", "text")
    with pytest.raises(SessionConflictError, match="the session is in a turn"):
        second.open("a", "text")
    second.close()
    with pytest.raises(SessionConflictError):
        sessions.delete(b"me", "a")
    assert first.commit("whole")
    assert sessions.get(b"me", "a").content == "whole"
    turn(sessions, "a", " and more")


def test_to_another_tenant_an_id_is_unknown() -> None:
    told: list[Keep] = []
    sessions = Sessions(SessionLimits(), tell=told.append)
    turn(sessions, "a", "mine")
    for call in (sessions.get, sessions.delete):
        with pytest.raises(SessionUnknownError, match="there is no such session"):
            call(b"you", "a")
    assert turn(sessions, "a", "yours", tenant=b"you") is None
    assert [one.content for one in sessions.all_of(b"you")] == ["yours"]
    sessions.delete(b"you", "a")
    assert [one.content for one in sessions.all_of(b"me")] == ["mine"]
    assert told == [Keep(owner=owner_of(b"you", "a"))]
    assert owner_of(b"you", "a") != owner_of(b"me", "a")
    assert owner_of(b"ab", "c") != owner_of(b"a", "bc")


def test_a_session_that_is_not_used_ends_of_itself() -> None:
    clock, told = Clock(), list[Keep]()
    sessions = Sessions(SessionLimits(session_ttl_s=10.0), told.append, clock=clock)
    turn(sessions, "a", "one")
    turn(sessions, "b", "one")
    clock.now_s += 8
    turn(sessions, "a", "two")
    busy = sessions.visit(b"me")
    busy.open("b", "text")
    clock.now_s += 8
    assert [one.id for one in sessions.all_of(b"me")] == ["b", "a"], "one in a turn stays"
    busy.close()
    assert [one.id for one in sessions.all_of(b"me")] == ["a"]
    clock.now_s += 8
    assert turn(sessions, "a", "new") is None
    assert told == [Keep(owner=owner_of(b"me", "b")), Keep(owner=owner_of(b"me", "a"))]


def test_the_engine_is_told_of_a_turn_before_anybody_can_end_the_session() -> None:
    """Told afterwards, what is kept of a session that was deleted meanwhile would be kept for ever."""
    told: list[Keep] = []
    sessions = Sessions(SessionLimits(), tell=told.append)
    visit = sessions.visit(b"me")
    visit.open("a", "text")
    keep = Keep(owner=visit.owner, token_ids=(1, 2))
    assert visit.commit("one", keep)
    assert told == [keep]
    sessions.delete(b"me", "a")
    assert told == [keep, Keep(owner=visit.owner)]


def test_of_many_threads_in_one_session_one_has_each_turn() -> None:
    sessions, told = Sessions(SessionLimits(max_sessions=3)), list[str]()
    begin = threading.Barrier(8)

    def client(number: int) -> None:
        begin.wait()
        for turn_number in range(60):
            with closing(sessions.visit(b"me")) as visit:
                try:
                    before = visit.open("a", "text")
                    new = f"{number}.{turn_number} "
                    if turn_number % 3 and visit.commit((before or "") + new):  # type: ignore[operator]
                        told.append(new)
                    if turn_number % 10 == 5:
                        sessions.get(b"me", "a")
                except (SessionConflictError, SessionUnknownError):
                    continue

    threads = [threading.Thread(target=client, args=(number,)) for number in range(8)]
    for one in threads:
        one.start()
    for one in threads:
        one.join()
    content = sessions.get(b"me", "a").content
    assert isinstance(content, str)
    assert sorted(content.split()) == sorted(new.strip() for new in told)
    assert sessions.get(b"me", "a").turns == sessions.turns == len(told) > 0
    sessions.delete(b"me", "a")
    assert len(sessions) == 0
    for session_id in "abc":
        turn(sessions, session_id, "one")


class Full:
    """An archive that fails."""

    def save(self, session: Session) -> None:
        raise RuntimeError("no")

    def remove(self, owner: bytes) -> None:
        raise AssertionError("nothing was saved")

    def load(self) -> tuple[Session, ...]:
        return ()


def test_a_turn_that_cannot_be_archived_leaves_the_session_free() -> None:
    sessions = Sessions(SessionLimits(), archive=Full())  # type: ignore[arg-type]
    for _ in range(2):
        with closing(sessions.visit(b"me")) as visit:
            visit.open("a", "text")
            with pytest.raises(RuntimeError):
                visit.commit("one")
    assert len(sessions) == 0


def test_no_tenant_has_more_than_its_share_and_none_is_lost_for_a_new_one() -> None:
    clock = Clock()
    sessions = Sessions(SessionLimits(max_sessions=2, session_ttl_s=60.0), clock=clock)
    turn(sessions, "a", "one")
    clock.now_s += 20
    turn(sessions, "b", "one")
    with pytest.raises(SessionsFullError, match="2 sessions are kept, the most there may be") as refused:
        turn(sessions, "c", "one")
    assert refused.value.retry_after_s == 40.0
    turn(sessions, "a", "two")
    turn(sessions, "c", "one", tenant=b"you")
    sessions.delete(b"me", "a")
    turn(sessions, "c", "one")
    with pytest.raises(SessionsFullError, match="keeps no sessions"):
        turn(Sessions(SessionLimits(max_sessions=0)), "a", "one")


def test_a_turn_of_another_form_or_count_or_with_other_modules_is_refused_and_changes_nothing() -> None:
    sessions = Sessions(SessionLimits())
    visit = sessions.visit(b"me")
    visit.open("a", "messages", ("rules",))
    visit.commit(({"role": "user", "content": "hi"},))

    def refused(match: str, *arguments: Any, error: type[Exception] = ParameterError) -> None:
        visit = sessions.visit(b"me")
        with pytest.raises(error, match=match):
            visit.open("a", *arguments)
        visit.close()

    refused("holds chat messages and this turn is a text", "text")
    refused("this one began with rules", "messages", ("others",))
    refused("has 1 turns and the request says 0", "messages", (), 0, error=SessionConflictError)
    visit = sessions.visit(b"me")
    assert visit.open("a", "messages", ("rules",), 1) == ({"role": "user", "content": "hi"},)
    assert (visit.turn, visit.modules) == (2, ("rules",))
    visit.close()
    visit = sessions.visit(b"me")
    visit.open("a", "messages")
    assert visit.modules == ("rules",)


@pytest.mark.parametrize("session_id", ["", ".", "..", "a/b", "a" * 129, "é", "a b", "-a", "a\n", "a\x00"])
def test_odd_ids_are_refused(session_id: str) -> None:
    sessions = Sessions(SessionLimits())
    with pytest.raises(ParameterError, match="session must be 1 to 128") as refused:
        sessions.visit(b"me").open(session_id, "text")
    assert refused.value.param == "session"
    assert len(sessions) == 0


@pytest.mark.parametrize(
    "settings",
    [{"max_sessions": -1}, {"max_sessions": True}, {"session_ttl_s": 0}, {"session_ttl_s": float("nan")}],
)
def test_limits_are_checked(settings: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="accepted is"):
        SessionLimits(**settings)


CONTENTS = {
    "messages": (
        {"role": "user", "content": "hi é"},
        {"role": "assistant", "content": [{"type": "text", "text": "x"}]},
    ),
    "text": "hi \u0000 é 😀",
    "token_ids": (1, 2, 3),
}


@pytest.fixture
def opened(tmp_path: Path) -> Any:
    files: list[SessionFiles] = []

    def again(model: str = "tiny", vocabulary: int = 10, **options: Any) -> Sessions:
        while files:
            files.pop().close()
        files.append(SessionFiles(tmp_path / "sessions", model, vocabulary))
        return Sessions(SessionLimits(), archive=files[0], **options)

    yield again
    while files:
        files.pop().close()


@pytest.mark.parametrize("form", CONTENTS)
def test_sessions_outlive_the_process(form: str, opened: Callable[..., Sessions], tmp_path: Path) -> None:
    sessions = opened()
    turn(sessions, "a", CONTENTS[form], form=form)
    turn(sessions, "a", CONTENTS[form], form=form)
    before = sessions.get(b"me", "a")
    files = [*(tmp_path / "sessions").glob("*.json")]
    assert [path.name for path in files] == [owner_of(b"me", "a").hex() + ".json"]
    assert stat.S_IMODE(files[0].stat().st_mode) == 0o600
    assert stat.S_IMODE((tmp_path / "sessions" / "secret").stat().st_mode) == 0o600
    assert opened().get(b"me", "a") == before
    opened().delete(b"me", "a")
    assert len(opened()) == 0


def test_the_secret_stays(tmp_path: Path) -> None:
    first = SessionFiles(tmp_path, "tiny", 10)
    secret = first.secret
    with pytest.raises(CheckpointError, match="another process is writing it"):
        SessionFiles(tmp_path, "tiny", 10)
    first.close()
    second = SessionFiles(tmp_path, "tiny", 10)
    assert second.secret == secret
    second.close()
    (tmp_path / "secret").write_bytes(b"short")
    with pytest.raises(ConfigError, match="has 5 bytes; accepted are the 32"):
        SessionFiles(tmp_path, "tiny", 10)


def test_sessions_that_are_too_old_are_not_taken_up(opened: Callable[..., Sessions], tmp_path: Path) -> None:
    clock = Clock()
    turn(opened(clock=clock), "a", "one")
    clock.now_s += 7200
    assert opened(clock=clock).all_of(b"me") == ()
    assert not [*(tmp_path / "sessions").glob("*.json")]


def test_a_file_from_the_future_does_not_keep_others_from_ending(opened: Callable[..., Sessions]) -> None:
    clock = Clock()
    clock.now_s += 1e9  # set right afterwards
    turn(opened(clock=clock), "odd", "one")
    clock.now_s -= 1e9
    sessions = opened(clock=clock)
    turn(sessions, "a", "one")
    clock.now_s += 7200
    assert sessions.all_of(b"me") == ()
    assert len(sessions) == 0


def test_what_no_file_can_hold_lives_in_memory(
    opened: Callable[..., Sessions], caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    sessions = opened()
    turn(sessions, "a", "half of a pair: \ud83d")
    assert "a session holds what no file can (UnicodeEncodeError); it lives in memory" in caplog.text
    turn(sessions, "a", " and on")
    assert sessions.get(b"me", "a").turns == 2
    assert not [*(tmp_path / "sessions").glob("*.partial")]


@pytest.mark.parametrize("written", [0, 1, 50, None])
def test_a_process_that_ended_while_it_wrote_leaves_the_turn_before(
    opened: Callable[..., Sessions], tmp_path: Path, written: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    sessions = opened()
    turn(sessions, "a", "one ")

    class Killed(BaseException):
        pass

    def cut(path: Path, data: bytes) -> None:
        path.write_bytes(data[:written])
        raise Killed

    monkeypatch.setattr(session_files, "write_private", cut)
    with pytest.raises(Killed):
        turn(sessions, "a", "two")
    monkeypatch.undo()
    assert len([*(tmp_path / "sessions").glob("*.partial")]) == 1
    again = opened()
    assert not [*(tmp_path / "sessions").glob("*.partial")]
    assert again.get(b"me", "a").content == "one "
    assert turn(again, "a", "two") == "one "
    assert opened().get(b"me", "a").content == "one two"


def test_another_models_sessions_are_left_alone(
    opened: Callable[..., Sessions], caplog: pytest.LogCaptureFixture
) -> None:
    turn(opened(), "a", (9,), form="token_ids")
    assert len(opened(model="other")) == 0
    assert "1 sessions belong to models served under other names" in caplog.text
    assert len(opened(vocabulary=9)) == 0
    assert len(opened()) == 1


def damaged(file: dict[str, Any]) -> list[bytes]:
    texts = [b"", b"{", b"[]", b"{}", b"\xff", b"[" * 100_000]
    changes = [
        {"version": 2},
        {"id": "../a"},
        {"id": "b"},
        {"tenant": ""},
        {"content": 5},
        {"form": "tuples"},
        {"turns": 0},
        {"turns": "1"},
        {"more": 1},
    ]
    return [*texts, *(json.dumps(file | change).encode() for change in changes)]


def test_a_damaged_file_is_no_session_and_stays(opened: Callable[..., Sessions], tmp_path: Path) -> None:
    turn(opened(), "a", "one")
    (path,) = (tmp_path / "sessions").glob("*.json")
    whole = path.read_bytes()
    for data in damaged(json.loads(whole)):
        path.write_bytes(data)
        assert len(opened()) == 0, data[:80]
        assert path.read_bytes() == data
    path.write_bytes(whole[: len(whole) // 2])
    assert len(opened()) == 0
    path.write_bytes(whole)
    assert len(opened()) == 1


def test_a_write_that_is_cut_off_leaves_the_turn_before(
    opened: Callable[..., Sessions], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    sessions = opened()
    turn(sessions, "a", "one")

    def full(source: Any, target: Any) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", full)
        turn(sessions, "a", " two")
    assert "a session could not be written: No space left on device" in caplog.text
    assert sessions.get(b"me", "a").content == "one two", "it lives in memory"
    assert opened().get(b"me", "a").content == "one"


def test_a_folder_that_cannot_be_used_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match=r"session_dir .* cannot be used: .*; accepted is a folder to write in"):
        SessionFiles(tmp_path / "file", "tiny", 10)


def test_nothing_of_a_session_shows_in_its_owner() -> None:
    session = Session(id="a", tenant=b"me", form="text", content="", turns=1, created_s=0.0, used_s=0.0)
    assert session.owner == owner_of(b"me", "a")
    assert b"me" not in session.owner
    assert len(session.owner) == 32
