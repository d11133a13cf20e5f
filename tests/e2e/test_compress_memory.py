# SPDX-License-Identifier: Apache-2.0
"""The memory ceiling: what one block predicts is what the run takes, and a run with a ceiling stays under it.

The peak is the system's own count of resident pages. RLIMIT_DATA is of no use here: it counts address space, private
mappings of files included, which compression has plenty of and never touches.
"""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from linnet import demo

SOURCE = Path(__file__).parents[2] / "src"
SCRIPT = """
import json, sys
from pathlib import Path
import torch
from linnet.compress import compress, make_recipe
from linnet.errors import LinnetError
torch.set_num_threads(1)
source, target = sys.argv[1], sys.argv[2]
ceiling = None if sys.argv[3] == "none" else int(sys.argv[3])
found = {}
def status(key):
    return int(Path("/proc/self/status").read_text().split(key + ":")[1].split()[0]) * 1024
def told(estimate):
    found["predicted"] = estimate.memory_bytes
recipe = make_recipe("W4A16-g32", "gptq", calibration_rows=8, calibration_length=512)
try:
    compress(source, target, recipe, estimated=told, memory_ceiling_bytes=ceiling)
except LinnetError as error:
    found["error"] = str(error)
print(json.dumps(found | {"peak": status("VmHWM")}))
"""


def run(target: Path, ceiling: int | None = None) -> dict:
    environment = os.environ | {"PYTHONPATH": str(SOURCE), "OMP_NUM_THREADS": "1"}
    arguments = [str(demo.model_directory()), str(target), str(ceiling or "none")]
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, *arguments], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def test_the_run_stays_under_what_was_predicted(tmp_path):
    free = run(tmp_path / "free")
    assert "error" not in free
    # a model this small is mostly the interpreter and libraries, whose resident pages depend on who mapped them before
    assert free["predicted"] / 1.4 < free["peak"] < 1.1 * free["predicted"]
    ceiling = int(1.15 * free["predicted"])
    held = run(tmp_path / "held", ceiling)
    assert "error" not in held
    assert held["peak"] <= ceiling
    assert (tmp_path / "held").is_dir()


def test_the_impossible_is_refused_at_once(tmp_path):
    started = time.monotonic()
    refused = run(tmp_path / "out", ceiling=310 << 20)  # more than the process has, less than the run needs
    assert "above the ceiling of 310 MiB" in refused["error"]
    assert time.monotonic() - started < 60
    assert list(tmp_path.iterdir()) == []


def test_a_run_that_goes_beyond_stops_at_a_resume_point(tmp_path, monkeypatch):
    """A prediction that was wrong: the run ends in a sentence, and goes on with more."""
    from linnet.compress import compress, make_recipe, preflight
    from linnet.compress import progress as room
    from linnet.errors import CapacityError

    recipe, used = make_recipe("W8A16", "rtn"), iter([1 << 20] * 6)
    monkeypatch.setattr(preflight, "check_memory", lambda found, ceiling: None)
    monkeypatch.setattr("linnet.compress.run.check_memory", lambda found, ceiling: None)
    with monkeypatch.context() as patch:
        patch.setattr(room, "resident_bytes", lambda: next(used, 9 << 30))
        with pytest.raises(CapacityError, match=r"9216 MiB are in use at .*; finished layers are kept .* higher one"):
            compress(demo.model_directory(), tmp_path / "out", recipe, memory_ceiling_bytes=8 << 30)
    assert compress(demo.model_directory(), tmp_path / "out", recipe, memory_ceiling_bytes=8 << 30).resumed
