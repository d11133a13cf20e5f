# SPDX-License-Identifier: Apache-2.0
"""Peak memory with many long sequences: what `plan.predict` says before, what the process had resident after.

    python bench/memory.py MODEL [--sequences 16] [--context 4096]

The model is opened as `linnet serve` does. The prediction counts weights, activations and the KV of the sequences that
run; what it leaves out (interpreter, tokenizer, tables) is part of the measurement, and so of the difference.
"""

import argparse
import json
import tempfile
from pathlib import Path

from linnet.backends.interface import Limits
from linnet.formats import Checkpoint
from linnet.models import load_model
from linnet.plan import output_rows, predict
from process import EngineProcess

TOKEN_BUDGET, MAX_SEQUENCES, BLOCK = 512, 64, 16
"""Serve's defaults."""

NEW_TOKENS = 16


def predicted_bytes(model: Path, sequences: int, context: int) -> int:
    """Weights, activations, and the KV of ``sequences`` full contexts."""
    with Checkpoint.open(model, verify=False) as checkpoint:
        source = load_model(checkpoint)
        rows = output_rows(source.spec.vocabulary_size, TOKEN_BUDGET, MAX_SEQUENCES)
        blocks = source.spec.max_positions // BLOCK
        ledger = predict(source, Limits(TOKEN_BUDGET, MAX_SEQUENCES, rows, BLOCK, blocks), "fast")
    return ledger.weight_bytes + ledger.arena_bytes + ledger.kv_bytes_per_token * sequences * context


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
