# SPDX-License-Identifier: Apache-2.0
"""``linnet env`` is what people run when something is broken."""

import pytest

from linnet.backends import select
from linnet.cli.machine import machine
from linnet.errors import LinnetError


@pytest.mark.parametrize("error", [ImportError("not built"), LinnetError("does not load")])
def test_facts_without_working_kernels(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    def broken() -> None:
        raise error

    monkeypatch.setattr(select, "native_kernels", broken)
    facts = machine()
    assert facts["kernel_build"] == f"none: {error}"
    assert facts["kernel_tiers"] == []
    assert facts["processor"]
