# SPDX-License-Identifier: Apache-2.0
"""The native module's types, written in ``_native.pyi``, are those of the module that was built."""

import ast
import inspect
import re
from pathlib import Path

import pytest

import linnet.backends.cpu

native = pytest.importorskip("linnet.backends.cpu._native")
STUB = ast.parse((Path(linnet.backends.cpu.__file__).parent / "_native.pyi").read_text(encoding="utf-8"))
_ARRAY = re.compile(r"(?:numpy\.)?ndarray\[dtype=(\w+)[^]]*\]")
_MODULES = re.compile(r"linnet\.backends\.cpu\._native\.|collections\.abc\.")


def stub_signatures() -> dict[str, str]:
    """Dotted name -> its parameters and result, types included."""
    found = {}
    for node in STUB.body:
        if isinstance(node, ast.FunctionDef):
            found[node.name] = _plain(node)
        elif isinstance(node, ast.ClassDef):
            found |= {f"{node.name}.{n.name}": _plain(n) for n in node.body if isinstance(n, ast.FunctionDef)}
    return found


def _plain(node: ast.FunctionDef) -> str:
    return f"({ast.unparse(node.args)}) -> {ast.unparse(node.returns) if node.returns else 'None'}"


def built_signatures() -> dict[str, str]:
    """The same of the built module, from what nanobind keeps for its stub generator."""
    found = {}
    for name, value in vars(native).items():
        if hasattr(value, "__nb_signature__"):
            found[name] = _of(value)
        elif inspect.isclass(value) and not hasattr(value, "__members__"):
            for member, method in vars(value).items():
                function = method.fget if isinstance(method, property) else method
                if hasattr(function, "__nb_signature__"):
                    found[f"{name}.{member}"] = _of(function)
    return found


def _of(function: object) -> str:
    """``def f(self, a: ndarray[dtype=float32, shape=(*)], /) -> None``, its defaults apart, in the stub's words."""
    text, _, defaults = function.__nb_signature__[0]  # type: ignore[attr-defined]
    for index, default in enumerate(defaults or ()):
        text = text.replace(f"\\{index}", repr(default))
    text = _MODULES.sub("", _ARRAY.sub(r"NDArray[np.\1]", text))
    node = ast.parse(f"{text.replace('def (', 'def read(')}: ...").body[0]
    assert isinstance(node, ast.FunctionDef)
    return _plain(node)


def test_the_stub_says_what_was_built():
    built = built_signatures()
    assert len(built) > 40, "the module keeps its signatures"
    assert stub_signatures() == built


def test_the_stub_has_every_value_of_every_enumeration():
    written = {
        node.name: [target.id for n in node.body if isinstance(n, ast.Assign) for target in n.targets]  # type: ignore[attr-defined]
        for node in STUB.body
        if isinstance(node, ast.ClassDef) and node.bases
    }
    assert written == {
        name: list(value.__members__) for name, value in vars(native).items() if hasattr(value, "__members__")
    }
