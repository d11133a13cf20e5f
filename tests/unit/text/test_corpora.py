# SPDX-License-Identifier: Apache-2.0
"""Texts to calibrate on: the same documents whichever kind of file they come from, and what is wrong is said."""

import gzip
import json
import lzma
from pathlib import Path

import pytest

from linnet.errors import ConfigError
from linnet.text import ChatTemplates
from linnet.text import corpora as room
from linnet.text.corpora import read_text_of

TEMPLATE = "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}"
DOCUMENTS = ["the first, with a ü", "the second\nof two lines", "the third"]


def templates() -> ChatTemplates:
    return ChatTemplates({"default": TEMPLATE})


def read(path: Path) -> str:
    return read_text_of(path, "calibration text", templates)


def lines(records: list) -> bytes:
    return "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records).encode()


@pytest.mark.parametrize("name", ["a.jsonl", "a.ndjson", "a.jsonl.xz", "a.jsonl.gz"])
def test_lines_of_json(tmp_path, name):
    pack = {".xz": lzma.compress, ".gz": gzip.compress}.get(Path(name).suffix, bytes)
    (tmp_path / name).write_bytes(pack(lines([{"id": 1, "text": text} for text in DOCUMENTS])))
    assert read(tmp_path / name) == "\n\n".join(DOCUMENTS)
    (tmp_path / name).write_bytes(pack(lines([*DOCUMENTS[:2], {"story": DOCUMENTS[2]}])))
    assert read(tmp_path / name) == "\n\n".join(DOCUMENTS)


def test_plain_text_is_left_alone(tmp_path):
    (tmp_path / "a.txt").write_text('{"text": "no record"}\n')
    assert read(tmp_path / "a.txt") == '{"text": "no record"}\n'


def test_chats_go_through_the_template(tmp_path):
    chats = [
        {"messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "ho"}]},
        {"conversations": [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}]},
    ]
    (tmp_path / "chats.jsonl").write_bytes(lines(chats))
    assert read(tmp_path / "chats.jsonl") == "<user>hi<assistant>ho\n\n<user>a<assistant>b"
    with pytest.raises(ConfigError, match=r"record 1: the chat cannot be rendered: .*template"):
        read_text_of(tmp_path / "chats.jsonl", "calibration text", lambda: ChatTemplates({}))


def test_parquet_and_saved_datasets(tmp_path):
    pyarrow = pytest.importorskip("pyarrow", reason="reading Parquet needs linnet[data]")
    from pyarrow import ipc, parquet

    table = pyarrow.table({"text": DOCUMENTS, "id": [1, 2, 3]})
    parquet.write_table(table, tmp_path / "a.parquet")
    assert read(tmp_path / "a.parquet") == "\n\n".join(DOCUMENTS)
    saved = tmp_path / "saved"
    for split, part in (("test", table.slice(2)), ("train", table)):  # as datasets.DatasetDict.save_to_disk does
        (saved / split).mkdir(parents=True)
        with ipc.new_stream(str(saved / split / "data-00000-of-00001.arrow"), table.schema) as stream:
            stream.write_table(part)
        (saved / split / "state.json").write_text("{}")
    assert read(saved) == "\n\n".join(DOCUMENTS)
    chats = pyarrow.table({"messages": [[{"role": "user", "content": "hi"}]]})
    (tmp_path / "hub" / "data").mkdir(parents=True)
    parquet.write_table(chats, tmp_path / "hub" / "data" / "train-00000.parquet")
    assert read(tmp_path / "hub") == "<user>hi"
    for name, kind in (("bad.parquet", "Parquet"), ("bad.arrow", "an Arrow stream")):
        (tmp_path / name).write_bytes(b"nothing of the kind")
        with pytest.raises(ConfigError, match=f"{name} cannot be read as {kind}: ") as caught:
            read(tmp_path / name)
        assert "\n" not in str(caught.value)


def test_only_so_much_is_read(tmp_path, monkeypatch):
    monkeypatch.setattr(room, "MOST_CHARACTERS", 30)
    (tmp_path / "a.jsonl").write_bytes(lines(DOCUMENTS) + b"this is never reached\n")
    assert read(tmp_path / "a.jsonl") == "\n\n".join(DOCUMENTS[:2])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b'{"text": "x"}\nnope\n', "line 2: not JSON: b'nope"),
        (b'{"text": "\xff"}\n', "line 1: not UTF-8"),
        (b"[1]\n", "record 1 is a list; accepted is a text, or an object with one"),
        (b'{"a": "x", "b": "y"}\n', "record 1 has the fields a, b; accepted is one of text, content"),
        (b'{"messages": [{"role": "user"}]}\n', "a turn of a chat is {role, content}, both text"),
        (b"\n", "has no records"),
    ],
)
def test_what_is_wrong_is_one_sentence(tmp_path, content, message):
    (tmp_path / "a.jsonl").write_bytes(content)
    with pytest.raises(ConfigError) as caught:
        read(tmp_path / "a.jsonl")
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_places_without_records(tmp_path):
    with pytest.raises(ConfigError, match=r"is a directory without \.jsonl"):
        read(tmp_path)
    with pytest.raises(ConfigError, match=r"gone\.jsonl cannot be read: No such file"):
        read(tmp_path / "gone.jsonl")
    (tmp_path / "cut.jsonl.xz").write_bytes(lzma.compress(lines(DOCUMENTS))[:40])
    with pytest.raises(ConfigError, match=r"cut\.jsonl\.xz cannot be read"):
        read(tmp_path / "cut.jsonl.xz")


def test_a_damaged_archive_is_said(tmp_path):
    damaged = bytearray(gzip.compress(lines([{"text": text} for text in DOCUMENTS * 40])))
    for place in range(20, 30):
        damaged[place] ^= 0xFF
    (tmp_path / "x.jsonl.gz").write_bytes(damaged)
    with pytest.raises(ConfigError, match=r"the calibration text .*x\.jsonl\.gz"):
        read(tmp_path / "x.jsonl.gz")
