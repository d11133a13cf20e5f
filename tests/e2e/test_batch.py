# SPDX-License-Identifier: Apache-2.0
"""``linnet batch``: what a server would answer, one line each, whatever the lines are and whenever it is killed."""

import json
import random
import signal
import subprocess
import sys
import time
import tracemalloc
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from serving import Running
from tiny_llama import write_tiny_llama

from linnet.api import LLM, EngineSettings
from linnet.cli.main import run
from linnet.errors import ConfigError, LinnetError
from linnet.serve import Answers, BatchCounts, Requests, ServeConfig, run_batch

NAME = "tiny-llama"
GREEDY = {"temperature": 0, "max_tokens": 6}
BODIES: list[tuple[str, dict[str, Any]]] = [
    ("/v1/completions", {"prompt": "the rain", **GREEDY}),
    ("/v1/completions", {"prompt": ["the cat", "a hat"], "n": 2, "seed": 4, "max_tokens": 5, "logprobs": 1}),
    ("/v1/chat/completions", {"messages": [{"role": "user", "content": "é 😀"}], **GREEDY}),
    ("/v1/chat/completions", {"messages": [{"role": "user", "content": "x"}], "temperature": 0, "max_tokens": 12,
                              "response_format": {"type": "json_object"}}),
    ("/v1/responses", {"input": "the rain", "temperature": 0, "max_output_tokens": 6}),
    ("/v1/embeddings", {"input": ["the cat", "a hat"]}),
    ("/v1/score", {"text_1": "the cat", "text_2": ["a hat", "rain"]}),
    ("/v1/rerank", {"query": "the cat", "documents": ["a hat", "rain"]}),
    ("/v1/completions", {"prompt": "x", "temperature": -1}),
    ("/v1/completions", {"prompt": "x" * 4000}),
]  # fmt: skip
BAD = {
    b"not json": "invalid_json",
    b'{"custom_id": 5, "method": "POST", "url": "/v1/completions", "body": {}}': "invalid_custom_id",
    b'{"method": "POST", "url": "/v1/completions", "body": {}}': "invalid_custom_id",
    b'{"custom_id": "b1", "method": "GET", "url": "/v1/completions", "body": {}}': "invalid_request",
    b'{"custom_id": "b2", "method": "POST", "url": "/v1/models", "body": {}}': "invalid_request",
    b'{"custom_id": "b3", "method": "POST", "url": "/v1/completions", "body": []}': "invalid_request",
    b'{"custom_id": "b4", "method": "POST", "url": "/v1/completions", "body": {"stream": true}}': "invalid_request",
    b'{"custom_id": "b5", "method": "POST", "url": "/v1/completions", "body": {}, "more": 1}': "invalid_request",
    b'{"custom_id": "r0", "method": "POST", "url": "/v1/completions", "body": {}}': "duplicate_custom_id",
    b'{"custom_id": "\xff"}': "invalid_json",
    b'{"custom_id": "long", "x": "' + b"y" * (9 << 20) + b'"}': "request_too_large",
}


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_llama(tmp_path_factory.mktemp("models") / NAME)


@pytest.fixture(scope="module")
def llm(directory: Path) -> Iterator[LLM]:
    with LLM(directory, engine=EngineSettings(kv_bytes=1 << 20, max_sequences=8, max_waiting_requests=120)) as llm:
        yield llm


def line(custom_id: str, url: str, body: dict[str, Any]) -> bytes:
    return json.dumps({"custom_id": custom_id, "method": "POST", "url": url, "body": {"model": NAME, **body}}).encode()


def answered(llm: LLM, asked: Path, out: Path) -> tuple[BatchCounts, list[dict[str, Any]]]:
    config = ServeConfig(names=(NAME,), ui=False)
    requests = Requests(asked, config.limits.body_bytes)
    with Answers(out) as answers:
        counts = run_batch(llm.served(), config, requests, answers)
    return counts, read(out)


def read(path: Path) -> list[dict[str, Any]]:
    return [json.loads(one) for one in path.read_bytes().splitlines()]


def lasting(body: Any) -> Any:
    """Without what names the one request and its time."""
    if isinstance(body, dict):
        return {name: lasting(value) for name, value in body.items() if name not in ("id", "created", "created_at")}
    return [lasting(one) for one in body] if isinstance(body, list) else body


def test_every_line_is_answered_as_by_a_server_and_in_its_place(llm: LLM, directory: Path, tmp_path: Path) -> None:
    asked = tmp_path / "in.jsonl"
    good = [line(f"r{index}", url, body) for index, (url, body) in enumerate(BODIES)]
    asked.write_bytes(b"\n".join([*good[:3], b"", *BAD, b"   ", *good[3:]]))
    counts, found = answered(llm, asked, tmp_path / "out.jsonl")
    assert [set(one) for one in found] == [{"id", "custom_id", "response", "error"}] * len(found)
    assert len({one["id"] for one in found}) == len(found) == counts.total == len(BODIES) + len(BAD)
    bad = [one for one in found if one["error"] is not None]
    assert [one["error"]["code"] for one in bad] == list(BAD.values())
    assert all(one["error"]["message"].startswith("line ") and one["response"] is None for one in bad)
    fine = [one for one in found if one["error"] is None]
    assert [one["custom_id"] for one in fine] == [f"r{index}" for index in range(len(BODIES))]
    with LLM(directory, kv_bytes=1 << 20) as other, Running(other, names=(NAME,)) as server:
        for (url, body), one in zip(BODIES, fine, strict=True):
            answer = server.http.post(url, json={"model": NAME, **body})
            assert one["response"]["status_code"] == answer.status_code
            assert one["response"]["request_id"]
            assert lasting(one["response"]["body"]) == lasting(answer.json())
    assert (counts.bad, counts.refused, counts.done) == (len(BAD), 2, counts.total)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in.jsonl", "out.jsonl"]


def test_a_file_is_read_in_bounded_memory(tmp_path: Path) -> None:
    asked = tmp_path / "in.jsonl"
    with asked.open("wb") as file:
        file.truncate(48 << 20)  # one line
        file.seek(0, 2)
        file.write(b"\n{}\r\n")
    tracemalloc.start()
    lines = list(Requests(asked, 1000).lines("model"))
    _, most_bytes = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert [(one.number, one.content) for one in lines] == [(1, None), (2, b"{}\r\n")]
    assert most_bytes < 8 << 20


def test_a_mark_of_the_byte_order_is_no_part_of_the_first_line(tmp_path: Path) -> None:
    asked = tmp_path / "in.jsonl"
    asked.write_bytes(b"\xef\xbb\xbf{}\n{}")
    assert [one.content for one in Requests(asked, 1000).lines("model")] == [b"{}\n", b"{}"]


def test_more_samples_than_the_queue_has_room_for_wait(llm: LLM, tmp_path: Path) -> None:
    asked = tmp_path / "in.jsonl"
    body = {"prompt": "the", "n": 20, "max_tokens": 1}
    asked.write_bytes(b"\n".join(line(f"r{index}", "/v1/completions", body) for index in range(20)))
    _, found = answered(llm, asked, tmp_path / "out.jsonl")
    assert [len(one["response"]["body"]["choices"]) for one in found] == [20] * 20


def test_what_was_answered_is_not_asked_again_and_a_cut_line_is(llm: LLM, tmp_path: Path) -> None:
    asked, out = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    body = {"prompt": "the", "max_tokens": 3}  # sampled, without a seed
    asked.write_bytes(b"\n".join(line(f"r{index}", "/v1/completions", body) for index in range(12)))
    _, first = answered(llm, asked, out)
    lines = out.read_bytes().splitlines(keepends=True)
    out.unlink()
    (tmp_path / "out.jsonl.partial").write_bytes(b"".join(lines[7:2:-1]) + lines[9][:-9])
    _, again = answered(llm, asked, out)
    assert again[3:8] == first[3:8]
    assert len(again) == 12
    assert [one["custom_id"] for one in again] == [one["custom_id"] for one in first]


def test_answers_to_other_requests_are_refused(llm: LLM, tmp_path: Path) -> None:
    asked, out = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    asked.write_bytes(line("r0", *BODIES[0]))
    answered(llm, asked, out)
    partial = out.rename(tmp_path / "out.jsonl.partial")
    asked.write_bytes(line("r0", *BODIES[2]))
    with pytest.raises(ConfigError, match="answers to other requests, or of another model"):
        answered(llm, asked, out)
    partial.write_bytes(b"something else\n")
    with pytest.raises(ConfigError, match="no file of answers"):
        answered(llm, asked, out)


def test_two_do_not_write_one_file(tmp_path: Path) -> None:
    with Answers(tmp_path / "out"):
        with pytest.raises(ConfigError, match="by another linnet batch"), Answers(tmp_path / "out"):
            pass
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_is_said(tmp_path: Path) -> None:
    with Answers(tmp_path / "out") as answers:
        answers._file.close()
        answers._file = open("/dev/full", "a+b", buffering=0)  # noqa: SIM115
        with pytest.raises(LinnetError, match="cannot be written"):
            answers.add({"id": "x"})


@pytest.mark.parametrize(
    ("prepare", "said"),
    [
        (lambda path: None, "cannot be read"),
        (lambda path: path.mkdir(), "is a folder"),
        (lambda path: path.write_text(" \n\n"), "holds no request"),
    ],
)
def test_files_that_are_none_are_one_sentence(
    directory: Path, tmp_path: Path, prepare: Any, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    prepare(tmp_path / "in.jsonl")
    assert run(["batch", str(directory), str(tmp_path / "in.jsonl"), "-o", str(tmp_path / "out.jsonl")]) == 2
    told = capsys.readouterr().err
    assert said in told
    assert told.count("\n") == 1


def test_an_output_in_the_way_is_one_sentence(
    directory: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = tmp_path / "in.jsonl"
    asked.write_bytes(line("r0", *BODIES[0]))
    for output, said in ((asked, "file of the requests"), (tmp_path / "no" / "out", "cannot be written")):
        assert run(["batch", str(directory), str(asked), "-o", str(output)]) == 2
        assert said in capsys.readouterr().err
    (tmp_path / "out").touch()
    assert run(["batch", str(directory), str(asked), "-o", str(tmp_path / "out")]) == 2
    assert "exists already" in capsys.readouterr().err


def test_killed_at_random_moments_no_answer_is_lost_or_double(directory: Path, tmp_path: Path) -> None:
    asked, out = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    partial = tmp_path / "out.jsonl.partial"
    count = 150
    body = {"prompt": "the rain", "max_tokens": 40, "ignore_eos": True}
    asked.write_bytes(b"\n".join(line(f"r{index}", "/v1/completions", body) for index in range(count)))
    command = [sys.executable, "-m", "linnet.cli.main", "batch", str(directory), str(asked), "-o", str(out)]
    options = ["--kv-cache-memory", "1MiB", "--max-num-seqs", "8"]
    rng = random.Random(3)
    kept: dict[str, bytes] = {}
    for number in (signal.SIGKILL, signal.SIGKILL, signal.SIGINT):
        started = subprocess.Popen([*command, *options], stderr=subprocess.PIPE, text=True)
        goal = min(len(kept) + rng.randint(5, 30), count - 40)
        try:
            while not partial.exists() or partial.read_bytes().count(b"\n") < goal:
                assert started.poll() is None, "it ended too early"
                time.sleep(0.005)
            started.send_signal(number)
            _, told = started.communicate(timeout=60)
        finally:
            started.kill()
        assert not out.exists()
        if number == signal.SIGINT:
            assert started.returncode == 130
            assert "the same command goes on from there" in told
        whole = [one for one in partial.read_bytes().splitlines(keepends=True) if one.endswith(b"\n")]
        now = {json.loads(one)["custom_id"]: one for one in whole}
        assert len(now) == len(whole)
        assert kept.items() <= now.items()
        kept = now
    done = subprocess.run([*command, *options], capture_output=True, text=True, timeout=120, check=True)
    assert f"{len(kept)} answered before" in done.stdout
    found = {json.loads(one)["custom_id"]: one for one in out.read_bytes().splitlines(keepends=True)}
    assert list(found) == [f"r{index}" for index in range(count)]
    assert kept.items() <= found.items()
    assert not partial.exists()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in.jsonl", "out.jsonl"]
