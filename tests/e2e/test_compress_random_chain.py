# SPDX-License-Identifier: Apache-2.0
"""A chain of steps drawn at random, stopped and killed at random, ends in the bytes of an undisturbed run.

LINNET_CHAIN_SEED repeats a chain; LINNET_CHAIN_TRIALS (default 1) is how many are drawn.
"""

import hashlib
import json
import os
import random
import subprocess
import sys
import time
from pathlib import Path

import pytest
from tiny_llama import CALIBRATION_TEXT

from linnet.compress import CancelToken, Interrupted, Recipe, compress, recipe_from
from linnet.compress.tables import ALGORITHMS
from linnet.errors import LinnetError

TRIALS = int(os.environ.get("LINNET_CHAIN_TRIALS", "1"))
SEED = int(os.environ.get("LINNET_CHAIN_SEED", str(random.randrange(1 << 30))))
FAST = {"autoround": {"iterations": 6, "batch": 1}, "obc": {"order": "dearest"}, "hqq": {"iterations": 3}}
SCHEMES = ("W4A16-g16", "W3A16-g16-asym", "W8A8", "TERNARY-g32", "W4A16-g16-head8", "NF4-g16")
SCRIPT = """
import json, sys, torch
from pathlib import Path
from linnet.compress import compress, recipe_from
torch.set_num_threads(1)
source, target, text, recipe = sys.argv[1:5]
print("ready", flush=True)
compress(source, target, recipe_from(json.loads(recipe)), calibration_text=Path(text).read_text())
"""


pytestmark = pytest.mark.usefixtures("one_thread")


def drawn(chance: random.Random) -> dict:
    """Steps in their order, each there or not, of whichever algorithms there are."""
    steps = []
    for kind in ("rotate", "smooth", "sparsify", "quantise", "repair"):
        if kind == "quantise" or chance.random() < 0.5:
            name = chance.choice(sorted(ALGORITHMS[kind]))
            step = {"step": kind, "algorithm": name, "options": dict(FAST.get(name, {}))}
            if kind == "quantise":
                step["scheme"] = chance.choice(SCHEMES)
            if kind == "sparsify":
                step["options"]["pattern"] = chance.choice(["2:4", "4:8", "50%"])
            steps.append(step)
    return {
        "steps": steps,
        "calibration_rows": chance.randint(3, 8),
        "calibration_length": 64,
        "chunk_tokens": chance.choice([64, 128, 256]),
        "seed": chance.randrange(100),
    }


def possible(chance: random.Random, tiny_model: Path) -> tuple[dict, Recipe]:
    """A chain that the checks accept; they refuse what does not go together, in a sentence."""
    from linnet.compress import check

    for _ in range(50):
        record = drawn(chance)
        try:
            recipe = recipe_from(record)
            check(tiny_model, recipe, CALIBRATION_TEXT)
        except LinnetError:
            continue
        return record, recipe
    pytest.fail("no chain is possible")


def files(directory: Path) -> dict[str, str]:
    return {
        path.name: hashlib.sha256(path.read_bytes()).hexdigest()
        for path in directory.iterdir()
        if path.suffix != ".json" or path.name == "config.json"
    }


class Stop:
    """Cancels at the n-th event; counts them."""

    def __init__(self, at: int, token: CancelToken) -> None:
        self.events, self._at, self._token = 0, at, token

    def __call__(self, _: object) -> None:
        self.events += 1
        if self.events == self._at:
            self._token.cancel("the test")


def killed(tiny_model: Path, target: Path, record: dict, delay_s: float) -> None:
    """Run in a process of its own, killed ``delay_s`` after its imports."""
    source = Path(__file__).parents[2] / "src"
    search = os.pathsep.join(part for part in (str(source), os.environ.get("PYTHONPATH", "")) if part)
    arguments = [str(tiny_model), str(target), str(tiny_model.parent / "calibration.txt"), json.dumps(record)]
    with subprocess.Popen(
        [sys.executable, "-c", SCRIPT, *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        env=os.environ | {"PYTHONPATH": search},
    ) as process:  # fmt: skip
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        try:
            process.wait(delay_s)
        except subprocess.TimeoutExpired:
            process.kill()


@pytest.mark.parametrize("trial", range(TRIALS))
def test_a_random_chain_is_resumed_to_the_same_bytes(tiny_model, tmp_path, trial):
    chance = random.Random(SEED + trial)
    record, recipe = possible(chance, tiny_model)
    told = f"LINNET_CHAIN_SEED={SEED + trial}: {' + '.join(step['algorithm'] for step in record['steps'])}"
    print(told)
    whole, started = Stop(-1, CancelToken()), time.monotonic()
    expected = compress(tiny_model, tmp_path / "whole", recipe, calibration_text=CALIBRATION_TEXT, observer=whole)
    duration = time.monotonic() - started
    target = tmp_path / "part"
    token = CancelToken()
    try:
        stop = Stop(chance.randint(2, whole.events), token)
        compress(tiny_model, target, recipe, calibration_text=CALIBRATION_TEXT, cancel=token, observer=stop)
    except Interrupted:
        pass
    killed(tiny_model, target, record, chance.uniform(0, duration))
    result = compress(tiny_model, target, recipe, calibration_text=CALIBRATION_TEXT)
    assert files(result.path) == files(expected.path), told
    assert json.dumps(result.layers) == json.dumps(expected.layers), told
