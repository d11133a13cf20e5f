# SPDX-License-Identifier: Apache-2.0
"""Compression under kill -9, signals, a second writer and a full disk: same bytes after resuming, one-line errors.

LINNET_KILL_TRIALS (default 5) is how many times a run is killed at a random instant; LINNET_KILL_SEED repeats a run.
"""

import hashlib
import os
import random
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
from tiny_llama import CALIBRATION_TEXT

from linnet.compress import compress, make_recipe
from linnet.errors import CheckpointError, LinnetError
from linnet.formats import Checkpoint

TRIALS = int(os.environ.get("LINNET_KILL_TRIALS", "5"))
SEED = int(os.environ.get("LINNET_KILL_SEED", str(random.randrange(1 << 30))))
FIELDS = {"calibration_rows": 24, "calibration_length": 64, "chunk_tokens": 256}
SCRIPT = """
import sys, torch
from pathlib import Path
from linnet.compress import compress, make_recipe
from linnet.errors import LinnetError
torch.set_num_threads(1)
source, target, text = sys.argv[1:4]
def observe(event):
    print(event.stage, event.layer, flush=True)
print("ready", flush=True)
try:
    compress(source, target, make_recipe("W4A16-g16-head8", **{fields}), calibration_text=Path(text).read_text(),
             observer=observe)
except LinnetError as error:
    print(error, file=sys.stderr)
    sys.exit(error.exit_status)
"""


pytestmark = pytest.mark.usefixtures("one_thread")


def here(tiny_model: Path, target: Path, **options):
    """The same compression in this process."""
    recipe = make_recipe("W4A16-g16-head8", **FIELDS)
    return compress(tiny_model, target, recipe, calibration_text=CALIBRATION_TEXT, **options)


def hashes(path: Path) -> dict[str, str]:
    return {name: entry["sha256"] for name, entry in Checkpoint.open(path, verify=True).manifest["tensors"].items()}


@pytest.fixture(scope="module")
def whole(tiny_model, tmp_path_factory) -> tuple[dict[str, str], float]:
    """Tensor hashes of an uninterrupted run, and how long it took."""
    started = time.monotonic()
    path = here(tiny_model, tmp_path_factory.mktemp("whole") / "out").path
    return hashes(path), time.monotonic() - started


def start(tiny_model: Path, target: Path) -> subprocess.Popen:
    """The compression in a process of its own, its imports done."""
    source = Path(__file__).parents[2] / "src"
    search = os.pathsep.join(part for part in (str(source), os.environ.get("PYTHONPATH", "")) if part)
    arguments = [str(tiny_model), str(target), str(tiny_model.parent / "calibration.txt")]
    process = subprocess.Popen(
        [sys.executable, "-c", SCRIPT.format(fields=FIELDS), *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": search},
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    return process


def wait_for(process: subprocess.Popen, stage: str, lines: int = 1) -> None:
    """Read events until ``lines`` of a stage have come."""
    while lines:
        line = process.stdout.readline()
        assert line, process.stderr.read()
        lines -= line.startswith(stage)


def finish(process: subprocess.Popen) -> tuple[int, str]:
    _, errors = process.communicate(timeout=120)
    return process.returncode, errors


@pytest.mark.parametrize("trial", range(TRIALS))
def test_killed_at_a_random_instant_the_result_is_the_same(tiny_model, whole, tmp_path, trial):
    expected, duration = whole
    chance = random.Random(SEED * 1000 + trial)
    target = tmp_path / "out"
    print(f"LINNET_KILL_SEED={SEED}, trial {trial}")
    for _ in range(chance.randint(1, 2)):
        process = start(tiny_model, target)
        delay = chance.uniform(0, 1.2 * duration)
        try:
            process.communicate(timeout=delay)
        except subprocess.TimeoutExpired:
            process.kill()
            process.communicate()
        if target.exists():
            assert hashes(target) == expected  # published before it was killed: then complete
        else:
            with pytest.raises(CheckpointError):
                Checkpoint.open(target)
            for path in tmp_path.glob(".out*"):  # what lies there is no model
                with pytest.raises(LinnetError):
                    Checkpoint.open(path)
    result = here(tiny_model, target)
    assert hashes(result.path) == expected
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM"])
def test_a_signal_ends_in_one_line_that_says_how_to_go_on(tiny_model, whole, tmp_path, name):
    import signal

    process = start(tiny_model, tmp_path / "out")
    wait_for(process, "compress", 3)
    process.send_signal(signal.Signals[name])
    status, errors = finish(process)
    assert status == 130
    assert errors.count("\n") == 1
    assert f"stopped by {name}" in errors
    assert "the same command resumes" in errors
    assert not (tmp_path / "out").exists()
    result = here(tiny_model, tmp_path / "out")
    assert hashes(result.path) == whole[0]


def test_a_second_writer_is_refused_and_the_first_finishes(tiny_model, whole, tmp_path):
    process = start(tiny_model, tmp_path / "out")
    wait_for(process, "compress")
    with pytest.raises(CheckpointError, match="another process is writing it"):
        here(tiny_model, tmp_path / "out")
    status, errors = finish(process)
    assert (status, errors) == (0, "")
    assert hashes(tmp_path / "out") == whole[0]


DISK_BYTES = 2 << 20
"""A run needs less, and more than half: rows lie there before and after a block, and what passes between its stages."""
FILLER_BYTES = DISK_BYTES - 148_576


@pytest.fixture
def small_disk(tmp_path):
    """A tmpfs of DISK_BYTES; needs the right to mount."""
    place = tmp_path / "disk"
    place.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={DISK_BYTES}", "tmpfs", str(place)], capture_output=True
    )
    if mounted.returncode:
        pytest.skip("mounting a tmpfs is not permitted here")
    yield place
    subprocess.run(["umount", str(place)], check=True)


def test_a_full_disk_ends_in_one_line_and_resumes(tiny_model, whole, small_disk, monkeypatch):
    import linnet.compress.run as run

    monkeypatch.setattr(run, "check_disk", lambda job, target: None)  # as if somebody else filled it meanwhile
    filler = small_disk / "filler"
    filler.write_bytes(bytes(FILLER_BYTES))
    with pytest.raises(CheckpointError, match="No space left on device; finished layers are kept") as caught:
        here(tiny_model, small_disk / "out")
    assert "\n" not in str(caught.value)
    assert not (small_disk / "out").exists()
    filler.unlink()
    assert hashes(here(tiny_model, small_disk / "out").path) == whole[0]


def test_a_full_disk_is_foreseen(tiny_model, small_disk):
    (small_disk / "filler").write_bytes(bytes(FILLER_BYTES))
    with pytest.raises(LinnetError, match="MiB are free"):
        here(tiny_model, small_disk / "out")
    assert [path.name for path in small_disk.iterdir()] == ["filler"]


def test_a_read_only_target_is_one_line(tiny_model, small_disk):
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    with pytest.raises(LinnetError, match=r"not writable|Read-only file system") as caught:
        here(tiny_model, small_disk / "out")
    assert "\n" not in str(caught.value)


def test_a_target_below_a_file_is_one_line(tiny_model, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(LinnetError, match="is not a directory, so") as caught:
        here(tiny_model, tmp_path / "file" / "out")
    assert "\n" not in str(caught.value)


def everything(directory: Path) -> dict[str, str]:
    """SHA-256 of every file below."""
    files = sorted(path for path in directory.rglob("*") if path.is_file())
    return {str(path.relative_to(directory)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


@pytest.mark.parametrize("restart", [False, True])
@pytest.mark.parametrize("target", ["home/model", "home", "home/model/out", "link/model", "home/model/../model/"])
def test_the_original_is_never_written_to(tiny_model, tmp_path, target, restart, monkeypatch):
    shutil.copytree(tiny_model, tmp_path / "home" / "model")
    (tmp_path / "link").symlink_to(tmp_path / "home")
    before = everything(tmp_path)
    monkeypatch.setattr("linnet.compress.run.check", None)  # refused before anything is read
    with pytest.raises(CheckpointError, match="original") as caught:
        here(tmp_path / "home" / "model", tmp_path / target, overwrite=True, restart=restart)
    assert "\n" not in str(caught.value)
    assert everything(tmp_path) == before


def test_overwriting_takes_only_an_unchanged_result(tiny_model, tmp_path, whole, monkeypatch):
    recipe = make_recipe("W8A16", "rtn")
    target = tmp_path / "out"
    assert not compress(tiny_model, target, recipe).nothing_done
    assert compress(tiny_model, target, recipe).nothing_done
    (target / "notes.txt").write_text("years")
    before = everything(tmp_path)
    assert compress(tiny_model, target, recipe).nothing_done
    with monkeypatch.context() as patch:
        patch.setattr("linnet.compress.run.check", None)
        for restart in (False, True):
            with pytest.raises(CheckpointError, match=r"kept as it is, .* not list, or not so: notes.txt;"):
                here(tiny_model, target, overwrite=True, restart=restart)
    with pytest.raises(CheckpointError, match="exists and is not empty"):
        here(tiny_model, target)
    assert everything(tmp_path) == before
    (target / "notes.txt").unlink()
    here(tiny_model, target, overwrite=True)
    assert hashes(target) == whole[0]
