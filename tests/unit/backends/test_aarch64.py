# SPDX-License-Identifier: Apache-2.0
"""The native tests on AArch64: cross-compiled, executed by qemu-user, portable and NEON tiers."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
COMPILER = os.environ.get("CXX_AARCH64", "aarch64-linux-gnu-g++")


@pytest.mark.slow
def test_native_tests_pass_under_emulation(tmp_path: Path) -> None:
    missing = [name for name in (COMPILER, "qemu-aarch64", "cmake") if shutil.which(name) is None]
    if missing:
        pytest.skip(f"{', '.join(missing)} not installed (Debian: g++-aarch64-linux-gnu, qemu-user)")
    script = ROOT / "csrc" / "tests" / "run_aarch64.sh"
    done = subprocess.run(["sh", str(script), str(tmp_path)], capture_output=True, text=True)
    assert done.returncode == 0, (done.stdout + done.stderr)[-4000:]
    log = (tmp_path / "Testing" / "Temporary" / "LastTest.log").read_text()
    assert "\nneon_i8mm\n" in log, "the emulated CPU has the instruction, so its tier must have been tested"
    assert "\nportable\n" in log
