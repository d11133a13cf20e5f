# SPDX-License-Identifier: Apache-2.0
"""The memory ceiling: what one block predicts is what the run takes, and a run with a ceiling stays under it.

The peak is the system's own count of resident pages. RLIMIT_DATA is of no use here: it counts address space, private
mappings of files included, which compression has plenty of and never touches. A control group counts what is touched,
and the kernel kills what exceeds it: the last two tests run inside one.
"""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
from tiny_llama import write_tiny_llama

from linnet import demo

pytestmark = pytest.mark.alone
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
if sys.argv[4] == "table":
    recipe = make_recipe("W4A16-head8", "rtn")
try:
    compress(source, target, recipe, estimated=told, memory_ceiling_bytes=ceiling)
except LinnetError as error:
    found["error"] = str(error)
print(json.dumps(found | {"peak": status("VmHWM")}))
"""


def run(target: Path, ceiling: int | None = None, table: Path | None = None) -> dict:
    """Of the bundled model, or of one that is almost only its ``table``."""
    environment = os.environ | {"PYTHONPATH": str(SOURCE), "OMP_NUM_THREADS": "1"}
    arguments = [str(table or demo.model_directory()), str(target), str(ceiling or "none"), "table" if table else ""]
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


def test_a_table_larger_than_every_block_is_foreseen(tmp_path):
    """An embedding that is rounded: its pages, its codes and no copy in fp32, in the prediction and in the run."""
    (tmp_path / "model").mkdir()
    model = write_tiny_llama(tmp_path / "model", dtype="bfloat16")
    rows, hidden = 3 << 20, 32
    tensors = load_file(model / "model.safetensors")
    del tensors["lm_head.weight"]
    tensors["model.embed_tokens.weight"] = np.tile(tensors["model.embed_tokens.weight"], (rows // 100, 1))[:rows]
    save_file(tensors, model / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((model / "config.json").read_text()) | {"vocab_size": rows, "tie_word_embeddings": True}
    (model / "config.json").write_text(json.dumps(config))
    found = run(tmp_path / "out", table=model)
    assert "error" not in found
    taken = found["peak"] - run(tmp_path / "small", table=demo.model_directory())["peak"]
    assert 2 * rows * hidden < taken < 6 * rows * hidden, "its two bytes, two or three of codes, and slices"
    assert found["predicted"] / 1.4 < found["peak"] < 1.1 * found["predicted"]


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


LEAST_BYTES = 96 << 20
"""Less than a run that fits the bundled model touches by itself, libraries' file pages not counted."""

Limited = Callable[[int], "list[str]"]


@pytest.fixture
def limited() -> Iterator[Limited]:
    """Bytes -> the beginning of a command line that runs the rest in a control group of at most so many, no swap."""
    root, first = Path("/sys/fs/cgroup"), {"memory.limit_in_bytes": "{}", "memory.memsw.limit_in_bytes": "{}"}
    group = root / "memory" / f"linnet-test-{os.getpid()}"  # version 1
    if (root / "cgroup.controllers").is_file():
        group, first = root / group.name, {"memory.max": "{}", "memory.swap.max": "0"}
    try:
        group.mkdir()
    except OSError:
        pytest.skip("control groups may not be made here")

    def wrap(limit: int) -> list[str]:
        for name, value in first.items():
            try:
                (group / name).write_text(value.format(limit))
            except OSError:
                if "swap" not in name and "memsw" not in name:
                    pytest.skip("control groups do not limit memory here")
        return ["sh", "-c", f'echo $$ > {group}/cgroup.procs && exec "$@"', "sh"]

    yield wrap
    for _ in range(50):
        try:
            group.rmdir()
            return
        except OSError:  # the last process of it is still ending
            time.sleep(0.1)


def command_line(wrapped: list[str], target: Path, *more: str) -> subprocess.CompletedProcess[str]:
    """``linnet compress`` of the bundled model, as a person types it."""
    start = "import sys; from linnet.cli.main import main; sys.exit(main())"
    arguments = ["compress", str(demo.model_directory()), "-o", str(target), "--scheme", "W4A16-g32"]
    return subprocess.run(
        [*wrapped, sys.executable, "-c", start, *arguments, "--calibration-rows", "8", *more],
        env=os.environ | {"PYTHONPATH": str(SOURCE), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


def test_a_ceiling_holds_where_the_kernel_enforces_it(tmp_path, limited):
    """With as much as was promised the run ends; the same limit without a promise that small kills it."""
    ceiling = int(1.1 * run(tmp_path / "free")["predicted"]) >> 20
    done = command_line(limited(ceiling << 20), tmp_path / "held", "--max-memory", f"{ceiling}MiB")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "held" / "config.json").is_file()
    killed = command_line(limited(LEAST_BYTES), tmp_path / "killed")
    assert killed.returncode == -signal.SIGKILL
    assert not (tmp_path / "killed").exists()


def test_what_cannot_hold_is_refused_inside_the_limit(tmp_path, limited):
    """In a sentence, not by the kernel: the check beforehand needs no more than it refuses."""
    refused = command_line(limited(300 << 20), tmp_path / "out", "--max-memory", "300MiB")
    assert refused.returncode not in (0, -signal.SIGKILL)
    assert "above the ceiling of 300 MiB" in " ".join(refused.stderr.split())
    assert list(tmp_path.iterdir()) == []
