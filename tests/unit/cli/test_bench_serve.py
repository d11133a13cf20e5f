# SPDX-License-Identifier: Apache-2.0
"""What ``linnet bench serve`` sends and what it makes of the times."""

import asyncio
import time
from pathlib import Path
from typing import Any

import pytest

from linnet.cli.bench import client, traces
from linnet.cli.bench.client import Address, Answer
from linnet.cli.bench.figures import Objective, draw, figures, percentile, times
from linnet.errors import ConfigError


def test_prompts_share_what_they_share_and_nothing_else() -> None:
    wishes = traces.drawn(3, 20, 4, shared_tokens=12)
    ids = [prompt for prompt in map(traces.Prompts(1, 5000).make, wishes) if isinstance(prompt, list)]
    assert [len(one) for one in ids] == [20] * 3
    assert ids[0][:12] == ids[1][:12] == ids[2][:12]
    assert ids[0][12:] != ids[1][12:]
    assert all(100 <= one < 5000 for prompt in ids for one in prompt)
    assert ids == [traces.Prompts(1, 5000).make(wishes[0]), *ids[1:]], "the same seed, the same prompts"
    words = traces.Prompts(1).make(wishes[0])
    assert isinstance(words, str)
    assert len(words.split()) == 20


def test_a_cut_trace_and_its_rate() -> None:
    wishes = [traces.Wish(5.0, 800, 10, (1, 2), 512), traces.Wish(7.0, 9000, 999), traces.Wish(9.0, 1, 1)]
    cut = traces.cut(wishes, 2, 8, 200, 50)
    assert [(one.prompt_tokens, one.new_tokens, one.piece_tokens) for one in cut] == [(100, 10, 64), (200, 50, 1)]
    assert [one.arrival_s for one in traces.at_rate(wishes, 4, 0)] == [0.0, 0.25, 0.5]
    poisson = [one.arrival_s for one in traces.at_rate(traces.drawn(2000, 1, 1), 4, 0)]
    assert poisson == sorted(poisson)
    assert poisson[-1] == pytest.approx(500, rel=0.1)


def test_a_trace_that_is_none_is_one_sentence(tmp_path: Path) -> None:
    for name, text in (("a.csv", "x,y\n1,2\n"), ("b.jsonl", "nothing"), ("c.jsonl", "[1]")):
        (tmp_path / name).write_text(text)
        with pytest.raises(ConfigError, match="not understood"):
            traces.read(tmp_path / name)
    with pytest.raises(ConfigError, match="cannot be read"):
        traces.read(tmp_path / "none.csv")


@pytest.mark.parametrize("url", ["localhost:8000", "ftp://a", "http://", "http://a:b", "http://a:99999"])
def test_an_address_that_is_none_is_one_sentence(url: str) -> None:
    with pytest.raises(ConfigError, match="the address is"):
        Address.of(url)


def test_addresses() -> None:
    assert Address.of("http://localhost:8000/v1/") == Address("localhost", 8000, False, "", None)
    assert Address.of("https://a.example/llm/v1", "k") == Address("a.example", 443, True, "/llm", "k")


def answered(due: float, first: float, last: float, tokens: int, error: str | None = None) -> Answer:
    return Answer(tokens, due, due, [first, last], last, prompt_tokens=10, new_tokens=tokens, error=error)


def test_times_count_from_when_a_request_was_due() -> None:
    late = Answer(3, due_s=1.0, began_s=4.0, pieces=[5.0, 6.0, 7.0], end_s=7.5, prompt_tokens=1, new_tokens=3)
    assert times(late) == {"ttft_s": 4.0, "tpot_s": 1.0, "latency_s": 6.5}


def test_figures_by_hand() -> None:
    answers = [
        answered(0, 0.5, 1.5, 11),
        answered(1, 3.0, 4.0, 11),
        answered(2, 2.5, 10.0, 2),
        answered(0, 0, 0, 0, "x"),
    ]
    found = figures(answers, Objective(ttft_s=1.0, tpot_s=0.2))
    assert (found["requests"], found["failed"], found["errors"], found["seconds"]) == (4, 1, {"x": 1}, 10.0)
    assert found["requests_per_s"] == pytest.approx(0.3)
    assert found["new_tokens_per_s"] == pytest.approx(2.4)
    assert found["goodput_per_s"] == pytest.approx(0.1), "the second's first token is late, the third's second is"
    assert found["good_share"] == 0.25
    assert found["ttft_s"] == {"p50": 0.5, "p90": 2.0, "p99": 2.0, "mean": 1.0}
    assert found["tpot_s"]["p99"] == 7.5
    assert percentile(range(1, 101), 99) == 99
    assert percentile([], 50) == 0


def test_a_picture(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    answers = [answered(0, 0.5, 1.5, 11)]
    draw(answers, figures(answers, Objective(1, 1)), "title", tmp_path / "a.png")
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")


EVENTS = (
    b'data: {"choices": [{"text": "a"}], "usage": null}\n\n: keep-alive\n\n',
    b'data: {"choices": [{"text": ""}]}\n\ndata: {"choices": [{"text": "b"}]}\n\n',
    b'data: {"choices": [], "usage": {"prompt_tokens": 5, "completion_tokens": 3}}\n\ndata: [DONE]\n\n',
)


def answer_of(parts: list[bytes], **body: Any) -> Answer:
    """What the client makes of a server that sends these parts, 20 ms apart."""

    async def run() -> Answer:
        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await reader.readuntil(b"}")
            for part in parts:
                writer.write(part)
                await writer.drain()
                await asyncio.sleep(0.02)
            writer.close()

        server = await asyncio.start_server(serve, "127.0.0.1", 0)
        async with server:
            answer = Answer(3, time.perf_counter())
            port = server.sockets[0].getsockname()[1]
            await client.complete(Address("127.0.0.1", port, False, "", None), body, answer)
        return answer

    return asyncio.run(run())


def test_a_stream_in_chunks_and_one_until_the_end() -> None:
    chunked = [b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"]
    chunked += [b"%x\r\n%s\r\n" % (len(event), event) for event in EVENTS] + [b"0\r\n\r\n"]
    for parts in (chunked, [b"HTTP/1.1 200 OK\r\n\r\n", *EVENTS], [b"HTTP/1.1 200 OK\r\n\r\n" + b"".join(EVENTS)]):
        answer = answer_of(parts)
        assert answer.error is None
        assert (answer.prompt_tokens, answer.new_tokens, len(answer.pieces)) == (5, 3, 2)
        assert answer.began_s <= answer.pieces[0] <= answer.pieces[1] <= answer.end_s


@pytest.mark.parametrize(
    ("parts", "error"),
    [
        ([b'HTTP/1.1 429 X\r\n\r\n{"error": {"message": "full"}}'], "429: full"),
        ([b"HTTP/1.1 502 X\r\n\r\n<html>"], "status 502"),
        ([b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nff\r\nabc"], "the answer broke off"),
        ([b"HTTP/1.1 200 OK\r\n\r\nevent: error\ndata: {}\n\n"], "an error in the middle of the stream"),
        ([b""], "the answer broke off"),
    ],
)
def test_what_goes_wrong_is_said(parts: list[bytes], error: str) -> None:
    assert answer_of(parts).error == error
