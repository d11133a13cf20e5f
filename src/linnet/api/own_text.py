# SPDX-License-Identifier: Apache-2.0
"""A checkpoint's own text: from the user's cache, or written now and kept there.

The entry is named by everything that decides the text but the processor: content of the checkpoint, the program that
its config makes of it, what the tokenizer puts around documents, rows, length, seed, purpose and the writer's version.
One ``.npz`` (no pickle): tokens int32, length and given tokens of every document, and the digest that proves it whole.
Damaged or missing, it is written again.
"""

import contextlib
import hashlib
import json
import os
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from linnet.api.llm import LLM
from linnet.api.writing import SEQUENCES, WRITER_VERSION, Progress, Purpose, chat_frame, document_start, write_own_text
from linnet.formats import Checkpoint
from linnet.models.load import load_model
from linnet.program.serialise import digest as program_digest
from linnet.text import OwnDocument, OwnText, Tokenizer
from linnet.user_cache import TEXTS, user_cache_directory

_BLOCK_TOKENS = 16

OpenModel = Callable[..., LLM]
"""(directory, **settings of ``LLM``) -> an open model."""


def own_text(
    directory: Path,
    rows: int,
    length: int,
    seed: int,
    *,
    purpose: Purpose = "calibration",
    progress: Progress = lambda stage, done, total: None,
    open_model: OpenModel = LLM,
    cache_directory: Path | None = None,
) -> OwnText:
    """``rows`` rows of ``length`` tokens (of the model's context, if that is shorter) by the model in ``directory``.

    It can be handed to ``compress`` as ``write_text``. The model is open only while it writes, with a KV cache of no
    more than it needs. Raises what opening it raises, and LinnetError where it cannot write.
    """
    with Checkpoint.open(directory, verify=False) as checkpoint:
        model = load_model(checkpoint)
        length = min(length, model.spec.max_positions)
        content = {"checkpoint": checkpoint.digest(), "program": program_digest(model.program)}
        decides = content | {"rows": rows, "length": length, "seed": seed, "purpose": purpose}
    entry = _entry(decides, Tokenizer.open(directory), cache_directory)
    found = None if entry is None else _read(entry, length, seed)
    if found is not None:
        return found
    sequences = min(rows, SEQUENCES)
    blocks = sequences * (length // _BLOCK_TOKENS + 1)
    with open_model(
        directory,
        max_model_len=length,
        max_sequences=sequences,
        block_size=_BLOCK_TOKENS,
        num_blocks=blocks,
        prefix_cache=False,
    ) as llm:
        text = write_own_text(llm, rows, length, seed, purpose, progress)
    if entry is not None:
        _keep(entry, text)
    return text


def _entry(decides: dict[str, Any], tokenizer: Tokenizer, cache_directory: Path | None) -> Path | None:
    """The file in the cache; None for a user without a home."""
    frame = chat_frame(tokenizer)
    decides |= {
        "writer": WRITER_VERSION,
        "start": document_start(tokenizer),
        "ends": tokenizer.eos_token_ids,
        "frame": None if frame is None else [frame.before, frame.after],
    }
    name = hashlib.sha256(json.dumps(decides, sort_keys=True).encode()).hexdigest()[:32]
    with contextlib.suppress(RuntimeError):
        return (cache_directory or user_cache_directory() / TEXTS) / f"{name}.npz"
    return None


def _read(entry: Path, length: int, seed: int) -> OwnText | None:
    """The text kept in ``entry``; None unless it is whole."""
    try:
        with np.load(entry, allow_pickle=False) as kept:
            ends = np.cumsum(kept["lengths"])
            pieces = np.split(kept["tokens"], ends[:-1])
            documents = tuple(
                OwnDocument(tuple(piece.tolist()), int(given))
                for piece, given in zip(pieces, kept["given"], strict=True)
            )
            text = OwnText(documents, length, seed, bool(kept["chats"]), int(kept["cut"]))
            return text if str(kept["digest"]) == text.digest else None
    except (OSError, ValueError, KeyError, TypeError, EOFError, RuntimeError, zipfile.BadZipFile):
        return None


def _keep(entry: Path, text: OwnText) -> None:
    """Publish by one rename; where the cache cannot be written, nothing happens."""
    with contextlib.suppress(OSError):
        entry.parent.mkdir(parents=True, exist_ok=True)
        partial = entry.with_name(f"{entry.stem}.{os.getpid()}.npz")
        try:
            np.savez(
                partial,
                tokens=np.concatenate([np.asarray(document.token_ids, np.int32) for document in text.documents]),
                lengths=np.array([len(document.token_ids) for document in text.documents], np.int64),
                given=np.array([document.given for document in text.documents], np.int64),
                chats=np.array(text.chats),
                cut=np.array(text.cut),
                digest=np.array(text.digest),
            )
            partial.replace(entry)
        finally:
            partial.unlink(missing_ok=True)
