# SPDX-License-Identifier: Apache-2.0
"""A model writes its own text: rows filled exactly, seeds that decide everything, a cache that is proved whole."""

import io
import json
from pathlib import Path

import numpy as np
import pytest
from tiny_llama import write_tiny_llama

from linnet import demo
from linnet.api import LLM, own_text
from linnet.api.writing import chat_frame, document_start, write_own_text
from linnet.errors import ConfigError, LinnetError
from linnet.text import OwnText, Tokenizer

LENGTH = 96


@pytest.fixture(scope="module")
def llm():
    with LLM(demo.model_directory(), max_model_len=LENGTH, kv_bytes=2**24, max_sequences=8) as opened:
        yield opened


@pytest.fixture(scope="module")
def written(llm: LLM) -> OwnText:
    return write_own_text(llm, 6, LENGTH, 0, "calibration")


def test_rows_are_filled_exactly_and_begin_with_a_document(llm: LLM, written: OwnText) -> None:
    rows = written.rows().token_ids
    assert rows.shape == (6, LENGTH)
    frame, start = chat_frame(llm.tokenizer), document_start(llm.tokenizer)
    assert frame is not None
    assert llm.tokenizer.decode(frame.before, skip_special_tokens=False) == "<|user|>"
    assert llm.tokenizer.decode(frame.after, skip_special_tokens=False) == "<|end|><|assistant|>"
    assert [row[0] for row in rows] == [start, frame.before[0]] * 3
    assert written.chats
    # Every row ends where a document ends: no document runs from one row into the next.
    ends = set(np.cumsum([len(document.token_ids) for document in written.documents]).tolist())
    assert ends >= {LENGTH * row for row in range(1, 7)}


def test_chats_hold_both_turns(llm: LLM, written: OwnText) -> None:
    frame = chat_frame(llm.tokenizer)
    assert frame is not None
    chats = [document for document in written.documents if document.token_ids[0] == frame.before[0]]
    assert len(chats) >= 3
    for chat in chats:
        text = llm.tokenizer.decode(chat.token_ids, skip_special_tokens=False)
        assert chat.given == len(frame.before)
        user, answer = text.removeprefix("<|user|>").split("<|end|><|assistant|>", 1)
        assert user
        assert answer


def test_seed_and_purpose_decide_and_nothing_else(llm: LLM, written: OwnText) -> None:
    again = write_own_text(llm, 6, LENGTH, 0, "calibration")
    assert again.digest == written.digest
    fewer = write_own_text(llm, 2, LENGTH, 0, "calibration")  # alone in its batch
    assert (fewer.rows().token_ids == written.rows().token_ids[:2]).all()
    others = [write_own_text(llm, 6, LENGTH, 1, "calibration"), write_own_text(llm, 6, LENGTH, 0, "evaluation")]
    assert len({text.digest for text in (written, *others)}) == 3


def test_progress_reaches_the_end_and_can_cancel(llm: LLM) -> None:
    seen: list[tuple[str, int, int]] = []
    write_own_text(llm, 3, LENGTH, 0, "calibration", lambda *event: seen.append(event))
    assert seen[-1][2] == 3 * LENGTH
    assert [done for _, done, _ in seen] == sorted(done for _, done, _ in seen)
    assert len(seen) > 20  # token by token, not row by row

    def stop(stage: str, done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_own_text(llm, 3, LENGTH, 0, "calibration", stop)
    assert write_own_text(llm, 3, LENGTH, 0, "calibration").digest  # what was cancelled is in nobody's way


def test_rows_that_do_not_fit_are_refused(llm: LLM) -> None:
    with pytest.raises(ConfigError, match=f"rows of {LENGTH + 1} tokens; accepted .* to {LENGTH} tokens"):
        write_own_text(llm, 2, LENGTH + 1, 0, "calibration")


def test_a_model_that_only_repeats_itself_is_refused(llm: LLM, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("linnet.api.writing.repetition_start", lambda token_ids: 0)
    with pytest.raises(LinnetError, match="only repeats itself"):
        write_own_text(llm, 2, LENGTH, 0, "calibration")


def test_a_repetition_is_cut_off_and_counted(llm: LLM, monkeypatch: pytest.MonkeyPatch) -> None:
    found: list[int | None] = [20]
    monkeypatch.setattr("linnet.api.writing.repetition_start", lambda token_ids: found.pop() if found else None)
    text = write_own_text(llm, 1, LENGTH, 0, "calibration")
    assert text.cut == 1
    assert len(text.documents[0].token_ids) == 21
    assert text.rows().token_ids.shape == (1, LENGTH)


def test_without_a_template_every_row_is_a_document(tmp_path: Path) -> None:
    model = write_tiny_llama(tmp_path / "tiny")
    config = json.loads((model / "tokenizer_config.json").read_text(encoding="utf-8"))
    del config["chat_template"]
    (model / "tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")
    text = own_text(model, rows=3, length=10**6, seed=0, purpose="evaluation", cache_directory=tmp_path / "cache")
    with LLM(model, kv_bytes=2**22) as tiny:
        assert text.length == tiny.source.spec.max_positions  # no row is longer than the model's context
    assert not text.chats
    start = document_start(Tokenizer.from_directory(model))
    assert {document.token_ids[0] for document in text.documents} == {start}


def test_the_cache_answers_without_the_model_and_is_proved(tmp_path: Path) -> None:
    opened: list[Path] = []

    def open_model(directory: Path, **settings: object) -> LLM:
        opened.append(directory)
        return LLM(directory, **settings)

    def write(seed: int = 0) -> OwnText:
        return own_text(
            demo.model_directory(),
            rows=2,
            length=32,
            seed=seed,
            purpose="calibration",
            open_model=open_model,
            cache_directory=tmp_path,
        )

    first = write()
    assert write() == first
    assert len(opened) == 1
    write(seed=1)
    assert len(opened) == 2
    assert len(list(tmp_path.iterdir())) == 2
    whole = next(tmp_path.iterdir()).read_bytes()
    flag, method = whole.rindex(b"PK\x01\x02") + 8, whole.index(b"PK\x01\x02") + 10  # "encrypted", "compressed by"
    array = io.BytesIO()
    np.save(array, np.zeros(3))
    damages = (b"", whole[:99], _with(whole, flag, 1), _with(whole, method, 77), array.getvalue(), b"nonsense")
    for damage in damages:
        for entry in tmp_path.iterdir():
            entry.write_bytes(damage)
        assert write() == first
    assert len(opened) == 2 + len(damages)
    entry = next(path for path in tmp_path.iterdir() if path.read_bytes() != b"nonsense")
    with np.load(entry) as kept:
        arrays = dict(kept)
    arrays["tokens"][5] += 1
    np.savez(entry, **arrays)
    assert write() == first
    assert len(opened) == 3 + len(damages)


def _with(content: bytes, place: int, value: int) -> bytes:
    return content[:place] + bytes([value]) + content[place + 1 :]


def test_another_config_gets_another_text(tmp_path: Path) -> None:
    """The same tensors under another base of the rotary embedding are another model."""
    model, cache = write_tiny_llama(tmp_path / "tiny"), tmp_path / "cache"
    own_text(model, rows=1, length=16, seed=0, cache_directory=cache)
    config = json.loads((model / "config.json").read_text(encoding="utf-8"))
    assert config["rope_theta"] != 77.0
    (model / "config.json").write_text(json.dumps(config | {"rope_theta": 77.0}), encoding="utf-8")
    own_text(model, rows=1, length=16, seed=0, cache_directory=cache)
    assert len(list(cache.iterdir())) == 2


def test_rows_too_short_for_a_chat_are_said_to_hold_none(llm: LLM, written: OwnText) -> None:
    assert written.chats
    assert not write_own_text(llm, 2, 16, 0, "calibration").chats
