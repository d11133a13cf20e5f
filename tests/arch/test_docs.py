# SPDX-License-Identifier: Apache-2.0
"""The pages for users: each can be reached, its links lead to headings, and what it quotes or computes is so.

Options, commands and paths on a page are checked by tests/e2e/test_readme.py.
"""

import ast
import functools
import importlib.util
import re
import sys
from pathlib import Path
from types import ModuleType

import pytest

from linnet.formats.forms import FORMS

ROOT = Path(__file__).resolve().parents[2]
INDEX = ROOT / "docs" / "README.md"
PAGES = sorted((ROOT / "docs").glob("*.md"))
ALL = [*PAGES, ROOT / "README.md", *(ROOT / name for name in ("CONTRIBUTING.md", "SECURITY.md", "CHANGELOG.md"))]
_LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
_FENCE = re.compile(r"^```.*?^```", re.DOTALL | re.MULTILINE)
_TEST = re.compile(r"`(tests/[\w/]+\.py)::(\w+)`")


def links(page: Path) -> list[tuple[Path, str]]:
    """(file, anchor) of every link on a page that does not leave the repository."""
    text = _FENCE.sub("", page.read_text(encoding="utf-8"))
    found = []
    for target in _LINK.findall(text):
        if not re.match(r"[a-z]+:", target):
            name, _, anchor = target.partition("#")
            found.append(((page.parent / name).resolve() if name else page, anchor))
    return found


def anchors(page: Path) -> set[str]:
    """What headings are called in links, by GitHub's rule."""
    headings = re.findall(r"^#+ (.+)$", _FENCE.sub("", page.read_text(encoding="utf-8")), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def reachable(start: Path) -> set[Path]:
    """Every page of docs/ that links lead to, the start included."""
    found, open_pages = {start}, [start]
    while open_pages:
        for target, _ in links(open_pages.pop()):
            if target.suffix == ".md" and target.parent == INDEX.parent and target not in found:
                found.add(target)
                open_pages.append(target)
    return found


@pytest.mark.parametrize("page", ALL, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_to_files_and_headings(page: Path) -> None:
    for target, anchor in links(page):
        assert target.exists(), f"{page.name} links to {target}"
        if anchor and target.suffix == ".md":
            assert anchor in anchors(target), f"{page.name}: {target.name} has no heading #{anchor}"


def test_every_page_can_be_reached_from_the_index() -> None:
    assert set(PAGES) == reachable(INDEX)


def test_the_readme_leads_to_the_index() -> None:
    assert INDEX in {target for target, _ in links(ROOT / "README.md")}


def test_no_page_shows_a_path_of_the_machine_it_was_written_on() -> None:
    for page in ALL:
        assert not re.search(r"(?<![\w.~])/(tmp|root|work|home)/\w", page.read_text(encoding="utf-8")), page.name


def test_every_promise_that_holds_names_tests_that_exist() -> None:
    rows = [
        [cell.strip() for cell in line.strip("|").split("|")]
        for line in (ROOT / "docs" / "security.md").read_text(encoding="utf-8").splitlines()
        if line.startswith("| ") and not line.startswith("| promise")
    ]
    assert len(rows) > 40
    for promise, state, proof in rows:
        assert state.split(":")[0] in ("holds", "partly", "not yet", "not yet measured"), promise
        assert state != "holds" or _TEST.search(proof), f"nothing proves {promise!r}"
        for path, name in _TEST.findall(proof):
            source = (ROOT / path).read_text(encoding="utf-8")
            assert re.search(rf"^(async )?def {name}\(", source, re.MULTILINE), f"{path} has no {name}"


@functools.cache
def strings_of_the_package() -> tuple[str, ...]:
    """Every string literal; an f-string is its literal parts."""
    found: list[str] = []
    for path in (ROOT / "src" / "linnet").rglob("*.py"):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        found += [
            node.value for node in ast.walk(tree) if isinstance(node, ast.Constant) and isinstance(node.value, str)
        ]
    return tuple(found)


def quoted_messages() -> list[str]:
    """The first column of the tables of troubleshooting.md, where it is written as code."""
    text = (ROOT / "docs" / "troubleshooting.md").read_text(encoding="utf-8")
    cells = [line.split("|")[1] for line in text.splitlines() if line.startswith("| ")]
    return [message for cell in cells for message in re.findall(r"`([^`]+)`", cell) if not message.startswith("~")]


@pytest.mark.parametrize("message", quoted_messages())
def test_messages_in_troubleshooting_are_what_the_program_says(message: str) -> None:
    for part in re.split("…|[;,:](?: and)?", message):  # where messages are put together from parts
        wanted = part.strip()
        if len(wanted) > 2:
            assert any(wanted in text for text in strings_of_the_package()), f"no message has {wanted!r}"


def test_enough_messages_are_quoted() -> None:
    assert len(quoted_messages()) > 30


def tool_named(name: str) -> ModuleType:
    """A program of tools/docs."""
    path = ROOT / "tools" / "docs" / f"{name}.py"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


@pytest.mark.slow
@pytest.mark.parametrize("name", ["memory", "kv"])
def test_the_memory_tables_are_what_the_ledger_says(name: str) -> None:
    tool = tool_named("memory_table")
    page = tool.PAGE.read_text(encoding="utf-8")
    assert tool.block_of(page, name).splitlines() == tool.TABLES[name]().splitlines()


def test_the_support_matrix_is_what_the_backends_say() -> None:
    """Its kernels are asked for in tests/ops/test_stored_forms.py."""
    tool = tool_named("support_matrix")
    written = tool.PAGE.read_text(encoding="utf-8")
    assert written.splitlines() == tool.page(tool.tier_table.on_page(written)).splitlines()


def test_every_form_that_is_read_is_in_the_table_of_what_is_read() -> None:
    page = (ROOT / "docs" / "formats-read.md").read_text(encoding="utf-8")
    table = [line.split("|")[2] for line in page.splitlines() if line.startswith("| ") and line.count("|") > 3]
    named = {word for cell in table for word in re.findall(r"`([\w-]+)`", cell)}
    assert {method for form in FORMS for method in form.methods} - {"gguf"} <= named


def test_no_block_of_a_page_was_left_empty() -> None:
    for page in ALL:
        assert not re.search(r"<!-- (\w+) -->\s*<!-- /\1 -->", page.read_text(encoding="utf-8")), page.name
