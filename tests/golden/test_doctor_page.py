# SPDX-License-Identifier: Apache-2.0
"""The ten models under ``linnet doctor`` in docs/formats-read.md: each is made here, and doctor says what is there."""

import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch", reason="needs the dev extra")
pytest.importorskip("transformers", reason="needs the dev extra")
pytest.importorskip("compressed_tensors", reason="needs the dev extra")

import foreign_forms
import test_awq
import test_compressed_tensors
import test_fp8
import test_gptq

from linnet import demo
from linnet.cli.doctoring import examine
from linnet.compress import compress, make_recipe
from linnet.formats import Checkpoint
from linnet.formats.convert import to_gguf
from linnet.text.gguf_vocabulary import gguf_vocabulary

PAGE = Path(__file__).resolve().parents[2] / "docs" / "formats-read.md"
ANSWERS = {"yes": True, "no": False, "unchecked": None}
Said = list[tuple[str, bool | None, str, str | None]]
"""Of each program: whether it reads it, why, what to type instead."""


def said_on_the_page() -> dict[str, Said]:
    found: dict[str, Said] = {}
    for block in re.split(r"^\$ linnet doctor \./", PAGE.read_text(encoding="utf-8"), flags=re.M)[1:]:
        name, _, rest = block.partition("\n")
        said: Said = []
        for line in rest.split("\n\n")[0].split("```")[0].splitlines():
            row = re.fullmatch(rf"(\S+) +({'|'.join(ANSWERS)}) +(.*)", line)
            if row is not None:
                said.append((row[1], ANSWERS[row[2]], row[3], None))
            else:
                program, loads, why, _ = said.pop()
                said.append((program, loads, why, line.strip().removeprefix("instead: ")))
        found[name] = said
    return found


def told(path: Path) -> None:
    """A model with the bundled one's tokenizer, without which no text goes in."""
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(demo.model_directory() / name, path)


def compressed(scheme: str) -> Callable[[Path], Any]:
    return lambda path: compress(demo.model_directory(), path, make_recipe(scheme, "rtn"))


def foreign(record: dict[str, Any], encode: Any) -> Callable[[Path], Any]:
    """A tiny random model in another's form."""

    def make(path: Path) -> None:
        made = foreign_forms.write_pair(foreign_forms.llama(), path.parent / f"of {path.name}", record, encode)
        made.quantised.rename(path)
        told(path)

    return make


def own_form(path: Path) -> None:
    model = foreign_forms.llama(hidden_size=256, intermediate_size=384).bfloat16()
    test_compressed_tensors.write_ours(model, path, "NF4", tied=False)
    told(path)


def as_gguf(path: Path) -> None:
    with Checkpoint.open(demo.model_directory()) as checkpoint:
        to_gguf(checkpoint, path, "Q8_0", gguf_vocabulary(checkpoint.path, checkpoint.config["vocab_size"]))


IN_ORDER = (4, 32, True, True, False)
MODELS: dict[str, Callable[[Path], Any]] = {
    "small": lambda path: shutil.copytree(demo.model_directory(), path),
    "small-w4": compressed("W4A16-g32"),
    "small-w4-kv8": compressed("W4A16-g32-kv8"),
    "small-w3": compressed("W3A16-g32"),
    "small-w8": compressed("W8A16"),
    "tiny-nf4": own_form,
    "tiny-gptq-in-order": foreign(test_gptq.record(*IN_ORDER), test_gptq.encoder(*IN_ORDER)),
    "tiny-awq": foreign(test_awq.record(32, False, True), test_awq.encoder(32, False, True)),
    "tiny-fp8-blocks": foreign(*test_fp8.FORMS["blocks"]),
    "small.gguf": as_gguf,
}


def test_the_page_is_about_these() -> None:
    assert [*said_on_the_page()] == [*MODELS]


@pytest.mark.parametrize("name", MODELS)
def test_what_the_page_says(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / f"of {name}").mkdir()
    MODELS[name](tmp_path / name)
    verdicts = examine(Path(name))
    assert [(one.program, one.loads, one.why, one.instead) for one in verdicts] == said_on_the_page()[name]
