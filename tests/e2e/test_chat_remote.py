# SPDX-License-Identifier: Apache-2.0
"""``linnet chat URL``: a conversation with a server is that with the model it serves; every trouble is a sentence."""

import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from serving import NAME, Running, eventually

from linnet.api import LLM, SamplingParams
from linnet.cli.address import Address
from linnet.cli.conversation import Conversation
from linnet.cli.main import run
from linnet.cli.partners import LocalPartner
from linnet.cli.remote import RemotePartner, chosen, models
from linnet.errors import CapacityError, ConfigError, LinnetError

KEY = "a-secret-key-of-mine"
LONG = {"max_tokens": 200, "ignore_eos": True}


@pytest.fixture(scope="module")
def llm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LLM]:
    from tiny_llama import write_tiny_llama

    with LLM(write_tiny_llama(tmp_path_factory.mktemp("models") / NAME), kv_bytes=1 << 20) as opened:
        yield opened


@pytest.fixture(scope="module")
def server(llm: LLM) -> Iterator[Running]:
    with Running(llm, keys=(KEY,)) as running:
        yield running
        running.wait_settled()


def address(server: Running) -> Address:
    return Address.of(server.url, KEY)


def never() -> bool:
    return False


def test_a_conversation_is_that_with_the_model_itself(server: Running, tmp_path: Path) -> None:
    from tiny_llama import write_tiny_llama

    with LLM(write_tiny_llama(tmp_path / NAME), max_sequences=1) as own:
        said: list[list[str]] = []
        for partner in (
            LocalPartner(own, SamplingParams(temperature=0.0, max_tokens=7), 100),
            RemotePartner(address(server), NAME, {"temperature": 0.0, "max_tokens": 7}),
        ):
            pieces: list[str] = []
            talk = Conversation(partner, pieces.append, lambda text: None, "Be brief.")
            for line in ("the rain é 😀", "the cat"):
                talk.take(line)
            said.append(["".join(pieces), *(turn["content"] for turn in talk.messages)])
    assert said[0] == said[1]


def test_why_an_answer_ended_is_said(server: Running) -> None:
    notes: list[str] = []
    partner = RemotePartner(address(server), NAME, {"max_tokens": 2, "ignore_eos": True})
    Conversation(partner, lambda text: None, notes.append).ask("the rain")
    assert notes == ["the answer was ended: its length is bounded (--max-tokens), or the context is full"]
    with pytest.raises(ConfigError, match=r"maximum context length is 256.*/reset begins a new one"):
        Conversation(partner, lambda text: None, notes.append).ask("the cat " * 400)


def test_an_interrupted_answer_ends_at_the_server_too(server: Running) -> None:
    pieces: list[str] = []
    partner = RemotePartner(address(server), NAME, LONG)
    for said in partner.answer([{"role": "user", "content": "x"}], lambda: len(pieces) > 1):
        pieces.append(said.text)
    assert len(pieces) == 2
    eventually(lambda: server.metric("num_requests_running") == 0)


def test_which_models_there_are_is_asked(server: Running) -> None:
    assert models(address(server)) == [NAME, "other-name"]
    assert chosen(address(server), "other-name") == "other-name"
    with pytest.raises(ConfigError, match=f"has 2 models: {NAME}, other-name; choose one with --served-model-name"):
        chosen(address(server), None)


def test_the_command(server: Running, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "key").write_text(f"{KEY}\n")
    with_key = ["--api-key-file", str(tmp_path / "key"), "--served-model-name", NAME]
    for command in ("chat", "run"):
        assert run([command, server.url, "the rain", *with_key, "--temperature", "0", "--max-tokens", "5"]) == 0
    said = capsys.readouterr().out.splitlines()
    assert said[0] == said[1]
    assert said[0]
    for options, told in (
        (with_key[2:], "the server says 401: this server needs a valid API key"),
        ([*with_key[:2]], "has 2 models"),
        ([*with_key[:2], "--served-model-name", "nobody"], "the server says 404: the model 'nobody' does not exist"),
        ([*with_key, "--threads", "1"], "--threads says how a model is opened here"),
        ([*with_key, "--temperature", "-1"], "temperature is -1"),
    ):
        assert run(["chat", server.url, "x", *options]) == 2
        error = capsys.readouterr().err
        assert told in error
        assert error.count("\n") == 1
        assert KEY not in error
    assert run(["chat", "no-such-model", "x", "--served-model-name", "x"]) == 2
    assert "is no server" in capsys.readouterr().err


def read_request(link: socket.socket) -> None:
    """All of it: who closes a connection with something unread in it takes back what has been sent."""
    with link.makefile("rb") as file:
        length = 0
        while (line := file.readline()).strip():
            name, _, value = line.partition(b":")
            length = int(value) if name.lower() == b"content-length" else length
        file.read(length)


@contextmanager
def fake(answer: Callable[[socket.socket], None]) -> Iterator[Address]:
    """A server that does one thing to every connection."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            while True:
                try:
                    link, _ = listener.accept()
                except OSError:
                    return
                with link:
                    read_request(link)
                    answer(link)

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        yield Address.of(f"http://127.0.0.1:{listener.getsockname()[1]}/v1")


HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
EVENT = b'data: {"choices": [{"delta": {"content": "one"}}]}\n\n'


def chunk(data: bytes) -> bytes:
    return f"{len(data):x}\r\n".encode() + data + b"\r\n"


def answer_of(where: Address, cancelled: Callable[[], bool] = never) -> list[str]:
    return [said.text for said in RemotePartner(where, "m", {}).answer([{"role": "user", "content": "x"}], cancelled)]


def test_other_servers_streams_are_read_and_their_troubles_said() -> None:
    odd = b': a comment\n\nevent: x\ndata: {"choices": []}\n\ndata: {"usage": {}}\n\ndata: nonsense\n\n'
    end = b'data: {"choices": [{"delta": {}, "finish_reason": "stop"}]}\n\ndata: [DONE]\n\n'
    with fake(lambda link: link.sendall(HEAD + chunk(odd) + chunk(EVENT) + chunk(end) + b"0\r\n\r\n")) as where:
        assert answer_of(where) == ["one", ""]
    with fake(lambda link: link.sendall(HEAD + chunk(EVENT))) as where:
        with pytest.raises(CapacityError, match="broke off its answer"):
            answer_of(where)
    with fake(lambda link: link.sendall(HEAD + chunk(b'data: {"error": {"message": "too warm"}}\n\n'))) as where:
        with pytest.raises(LinnetError, match="the server says: too warm"):
            answer_of(where)
    with fake(lambda link: link.sendall(b"HTTP/1.1 500 No\r\nContent-Length: 2\r\n\r\nno")) as where:
        with pytest.raises(CapacityError, match="the server says 500: nothing more"):
            answer_of(where)
    with fake(lambda link: link.sendall(b"not http\r\n\r\n")) as where:
        with pytest.raises(CapacityError, match="does not answer as a server"):
            models(where)


ODD = ["5", "null", "[]", '"x"', '{"choices": 5}', '{"choices": {"a": 1}}', '{"choices": [5]}', '{"choices": [null]}',
       '{"choices": [{"delta": 5}]}', '{"choices": [{"delta": {"content": [1]}}]}', '{"choices": [], "error": null}',
       "[" * 100_000, "x" * (3 << 20)]  # fmt: skip


def test_a_server_may_send_anything() -> None:
    odd = "".join(f"data: {one}\n\n" for one in ODD).encode() + EVENT + b"data: [DONE]\n\n"
    with fake(lambda link: link.sendall(HEAD + chunk(odd) + b"0\r\n\r\n")) as where:
        assert answer_of(where) == ["one"]
    for body in (*ODD, '{"data": 5}', '{"data": [5]}', '{"data": [{}]}'):
        length = f"Content-Length: {len(body)}\r\n\r\n{body}".encode()
        with fake(lambda link, sent=length: link.sendall(b"HTTP/1.1 200 OK\r\n" + sent)) as where:  # type: ignore[misc]
            with pytest.raises(CapacityError, match="does not answer as a server"):
                models(where)
        with fake(lambda link, sent=length: link.sendall(b"HTTP/1.1 400 No\r\n" + sent)) as where:  # type: ignore[misc]
            with pytest.raises(ConfigError, match="the server says 400: nothing more"):
                answer_of(where)


def test_nobody_there_is_one_sentence() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    with pytest.raises(CapacityError, match=rf"http://127.0.0.1:{port} does not answer: Connection refused"):
        answer_of(Address.of(f"http://127.0.0.1:{port}"))


def test_who_waits_for_a_silent_server_can_be_interrupted() -> None:
    pressed = threading.Event()
    threading.Timer(0.3, pressed.set).start()
    with fake(lambda link: time.sleep(5)) as where:
        began_s = time.monotonic()
        assert answer_of(where, pressed.is_set) == []
        assert time.monotonic() - began_s < 4
