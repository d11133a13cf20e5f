# SPDX-License-Identifier: Apache-2.0
"""Peak memory with many long sequences: what `plan.predict` says before, what the process had resident after.

    python bench/memory.py MODEL [--sequences 16] [--context 4096]

The model is opened as `linnet serve` does, and every sequence is filled. VmHWM counts mapped weights as well.
"""

import argparse
import json
import tempfile
from pathlib import Path

from linnet.backends.cpu.backend import CpuBackend
from linnet.backends.interface import Limits
from linnet.formats import Checkpoint
from linnet.models import load_model
from linnet.plan import output_rows, predict
from process import EngineProcess

TOKEN_BUDGET, BLOCK = 512, 16
"""Serve's defaults."""

NEW_TOKENS = 16


def predicted_bytes(model: Path, sequences: int, context: int) -> int:
    """What the ledger says will be resident when ``sequences`` contexts are full."""
    with Checkpoint.open(model, verify=False) as checkpoint:
        source = load_model(checkpoint)
        rows = output_rows(source.spec.vocabulary_size, TOKEN_BUDGET, sequences)
        limits = Limits(TOKEN_BUDGET, sequences, rows, BLOCK, -(-context // BLOCK))
        return predict(source, limits, "fast", CpuBackend()).resident_bytes


def main() -> None:
    """Print one JSON line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--sequences", type=int, default=16)
    parser.add_argument("--context", type=int, default=4096)
    options = parser.parse_args()
    predicted = predicted_bytes(options.model, options.sequences, options.context)
    with tempfile.NamedTemporaryFile(suffix=".log") as log:
        with EngineProcess("linnet", options.model, Path(log.name)) as engine:
            found = engine.generate(options.context - NEW_TOKENS, NEW_TOKENS, options.sequences)
    measured = int(found["peak_rss_bytes"])
    print(json.dumps({"predicted_bytes": predicted, "measured_bytes": measured, "ratio": measured / predicted}))


if __name__ == "__main__":
    main()
