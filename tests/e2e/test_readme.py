# SPDX-License-Identifier: Apache-2.0
"""What README.md and docs/ promise exists: help pages as shown, options, links and files.

A page may grow as it likes. A block that shows `$ linnet COMMAND --help` must show what the program prints; an option
written behind `linnet COMMAND` must be one of that command's; a path of ours must lead somewhere.
"""

import functools
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from test_command_line import linnet

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
BASES = (ROOT, ROOT / "src" / "linnet", ROOT / "csrc", ROOT / "docs")
"""Where a path may start: the repository, the package (rooms are named without it), the kernels, the pages."""
LOG = "LOG.md"
"""Dated experiments speak of what was there on that day."""
UNTRACKED = frozenset({".venv", "build", "dist", "out", "scratch"})

_FENCE = re.compile(r"^ {0,3}(```+|~~~+)[^\n]*\n(.*?)^ {0,3}\1\s*$", re.DOTALL | re.MULTILINE)
_SPAN = re.compile(r"(?<!`)(`+)(?!`)(.+?)(?<!`)\1(?!`)", re.DOTALL)
_LINK = re.compile(r"!?\[[^\]]*\]\(\s*<?([^)\s>]+)>?(?:\s+\"[^\"]*\")?\s*\)|^\[[^\]]+\]:\s*(\S+)", re.MULTILINE)
_COMMAND = re.compile(r"(?<![\w./-])linnet[ \t]+([a-z][a-z-]*)\b([^\n|;&#`]*)")
_BARE = re.compile(r"(?<![\w./-])linnet[ \t]+(--[^\n|;&#`]*)")
_OPTION = re.compile(r"(?<![\w-])--[a-z][a-z0-9-]*")
_PATH = re.compile(r"[\w.*{},-]+(?:/[\w.*{},-]+)+/?")


def blocks(text: str) -> list[str]:
    """The contents of fenced blocks."""
    return [match.group(2) for match in _FENCE.finditer(text)]


def code(text: str) -> Iterator[str]:
    """Everything written as code: fenced and indented blocks, whole, and code spans."""
    yield from blocks(text)
    prose = _FENCE.sub("\n", text)
    yield "\n".join(re.findall(r"^(?: {4}|\t).*$", prose, re.MULTILINE))
    for match in _SPAN.finditer(prose):
        yield match.group(2).replace("\n", " ")


def helps(text: str) -> list[tuple[tuple[str, ...], str]]:
    """(arguments, shown output) of every `$ linnet … --help` in a fenced block, up to the next `$ ` or the end."""
    found = []
    for block in blocks(text):
        lines = block.splitlines()
        for index, line in enumerate(lines):
            match = re.fullmatch(r"\s*\$ linnet\b(.*--help)\s*", line)
            if match is None:
                continue
            rest = lines[index + 1 :]
            end = next((place for place, one in enumerate(rest) if one.lstrip().startswith("$ ")), len(rest))
            found.append((tuple(match.group(1).split()), "\n".join(rest[:end])))
    return found


def options(text: str) -> list[tuple[str, str]]:
    """(command, option) for every option behind `linnet COMMAND`; the command of `linnet --option` is empty."""
    found = []
    for part in code(text):
        joined = re.sub(r"\\\n\s*", " ", part)
        for match in _COMMAND.finditer(joined):
            found += [(match.group(1), option) for option in _OPTION.findall(match.group(2))]
        for match in _BARE.finditer(joined):
            found += [("", option) for option in _OPTION.findall(match.group(1))]
    return found


def commands(text: str) -> set[str]:
    """Commands shown as code."""
    return {match.group(1) for part in code(text) for match in _COMMAND.finditer(part)}


def paths(text: str) -> list[str]:
    """Paths anywhere on a page that begin where something of ours begins, braces expanded."""
    found = []
    for match in _PATH.finditer(text):
        before, after = text[: match.start()][-1:], text[match.end() :][:1]
        # Addresses, absolute and home paths, places above the repository, and <placeholders> are not ours.
        if before in ("/", "~", ":", "<", "$", "@") or after in ("<", "$", "(") or match.group().startswith(".."):
            continue
        found += [one for one in expanded(match.group().removeprefix("./").rstrip(".,-")) if ours(one)]
    return found


def expanded(path: str) -> list[str]:
    """`a/{b,c}.py` is two paths."""
    match = re.search(r"\{([^{}]*)\}", path)
    if match is None:
        return [path.strip("{}")]
    return [one for name in match.group(1).split(",") for one in expanded(path.replace(match.group(), name, 1))]


def ours(path: str) -> bool:
    """Whether the first part is a directory of this repository, and the path names a file or directory in it."""
    first, _, rest = path.partition("/")
    if first in UNTRACKED or "*" in first or not any((base / first).is_dir() for base in BASES):
        return False
    # `compress/evaluate/serve` and `prefill/decode` are words, not places: a room alone proves nothing.
    return (ROOT / first).is_dir() or bool(re.search(r"\.[a-z]+$|/$", rest))


def exists(path: str, page: Path) -> bool:
    pattern = path.rstrip("/")
    return any(base.joinpath(pattern).exists() or any(base.glob(pattern)) for base in (*BASES, page.parent))


@functools.cache
def help_page(*arguments: str, columns: str = "100") -> str:
    result = linnet(*arguments, COLUMNS=columns)
    assert result.returncode == 0, result.stderr
    return str(result.stdout)


def tidy(text: str) -> list[str]:
    """Lines without trailing blanks, and without blank lines at both ends."""
    return "\n".join(line.rstrip() for line in text.splitlines()).strip("\n").splitlines()


def test_help_pages_in_the_readme_are_what_the_program_prints() -> None:
    for page in PAGES:
        for arguments, shown in helps(page.read_text(encoding="utf-8")):
            assert tidy(shown) == tidy(help_page(*arguments)), f"{page.name}: $ linnet {' '.join(arguments)}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_option_that_a_page_mentions_exists(page: Path) -> None:
    known = set(re.findall(r"^[│|]?\s*([a-z][a-z-]*)  ", help_page("--help", columns="200"), re.MULTILINE))
    text = page.read_text(encoding="utf-8")
    if page.name != LOG:
        assert commands(text) <= known, f"{page.name} shows commands that do not exist: {commands(text) - known}"
    for command, option in options(text):
        if page.name == LOG and command not in known | {""}:
            continue
        shown = help_page(*([command] if command else []), "--help", columns="200")
        assert option in _OPTION.findall(shown), f"{page.name}: linnet {command} has no option {option}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_and_paths_of_a_page_lead_somewhere(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    for match in _LINK.finditer(_SPAN.sub("", _FENCE.sub("", text))):
        target = (match.group(1) or match.group(2)).partition("#")[0]
        if target and not re.match(r"[a-z][a-z0-9+.-]*:", target):
            assert (page.parent / target).exists(), f"{page.name} links to {target}, which does not exist"
    if page.name != LOG:
        missing = sorted({path for path in paths(text) if not exists(path, page)})
        assert not missing, f"{page.name} names files that do not exist: {missing}"


def test_the_checks_see_what_they_look_for() -> None:
    text = """
Intro with `linnet serve --port 1`, [a](docs/api.md#x) and `tests/unit/nothing.py`, `src/linnet/cli/{main,gone}.py`.

    linnet compress DIR --scheme W4A16 \\
        --gone   # --comment
    linnet --version

```console
$ linnet serve --help
 Usage
$ linnet demo
```
See `backends/interface.py: SamplingBatch`, `https://example.org/docs/none.md`, `~/docs/none.md`, prefill/decode,
`./docs-of-mine`, tools/nothing.py.
"""
    assert helps(text) == [(("serve", "--help"), " Usage")]
    found = options(text)
    assert [one for one in found if one != ("serve", "--help")] == [
        ("compress", "--scheme"),
        ("compress", "--gone"),
        ("", "--version"),
        ("serve", "--port"),
    ]
    assert commands(text) == {"serve", "compress", "demo"}
    assert set(paths(text)) == {
        "tests/unit/nothing.py",
        "src/linnet/cli/main.py",
        "src/linnet/cli/gone.py",
        "backends/interface.py",
        "tools/nothing.py",
        "docs/api.md",
    }
    assert exists("backends/interface.py", ROOT / "README.md")
    assert not exists("src/linnet/cli/gone.py", ROOT / "README.md")
    assert [match.group(1) for match in _LINK.finditer(text)] == ["docs/api.md#x"]
