# SPDX-License-Identifier: Apache-2.0
"""The line that says how to install an extra works where Linnet was installed from."""

import json
import os
import sys
from importlib.metadata import PackageNotFoundError
from pathlib import Path

import pytest

from linnet import extras
from linnet.extras import install_command


class Installed:
    """A distribution that remembers where it came from."""

    def __init__(self, record: object) -> None:
        self.record = record

    def read_text(self, name: str) -> str | None:
        assert name == "direct_url.json"
        return None if self.record is None else json.dumps(self.record)


@pytest.fixture(autouse=True)
def own_pip(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A pip beside this Python, so that the command reads ``pip``."""
    pip = tmp_path / "bin" / "pip"
    pip.parent.mkdir()
    pip.write_text("#!/bin/sh\n")
    pip.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(pip.parent / "python"))
    monkeypatch.setenv("PATH", f"{pip.parent}{os.pathsep}{os.environ['PATH']}")


def came_from(monkeypatch: pytest.MonkeyPatch, record: object) -> None:
    monkeypatch.setattr(extras, "distribution", lambda name: Installed(record))


def test_from_an_index(monkeypatch: pytest.MonkeyPatch) -> None:
    came_from(monkeypatch, None)
    assert install_command("compress") == "pip install 'linnet[compress]'"
    assert install_command("compress", "report") == "pip install 'linnet[compress,report]'"


@pytest.mark.parametrize(("editable", "flag"), [(True, "-e "), (False, "")])
def test_from_a_checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, editable: bool, flag: str) -> None:
    checkout = tmp_path / "a checkout"
    checkout.mkdir()
    came_from(monkeypatch, {"url": checkout.as_uri(), "dir_info": {"editable": editable}})
    assert install_command("report") == f"pip install {flag}'{checkout}[report]'"
    monkeypatch.chdir(checkout)
    assert install_command("report") == f"pip install {flag}'.[report]'"


def test_from_a_wheel_while_it_is_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wheel = tmp_path / "linnet-0.1.0-cp311-cp311-manylinux_2_34_x86_64.whl"
    came_from(monkeypatch, {"url": wheel.as_uri(), "archive_info": {}})
    assert install_command("compress") == "pip install 'linnet[compress]'"
    wheel.touch()
    assert install_command("compress") == f"pip install '{wheel}[compress]'"


def test_uninstalled_in_a_checkout(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> object:
        raise PackageNotFoundError(name)

    monkeypatch.setattr(extras, "distribution", missing)
    checkout = Path(extras.__file__).resolve().parents[2]
    monkeypatch.chdir(checkout)
    expected = "-e '.[compress]'" if (checkout / "pyproject.toml").is_file() else "'linnet[compress]'"
    assert install_command("compress") == f"pip install {expected}"


def test_another_environments_pip_is_not_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    came_from(monkeypatch, None)
    monkeypatch.setattr(sys, "executable", str(tmp_path / "elsewhere" / "python"))
    assert install_command("compress") == f"{tmp_path}/elsewhere/python -m pip install 'linnet[compress]'"
