# SPDX-License-Identifier: Apache-2.0
"""What layers with a window save: memory of the KV cache after one long prompt, against a cache that keeps everything.

    python bench/windows.py MODEL --tokens 8192

Each way in a process of its own, in turns: the prompt (random ids, the same ones) is read and some tokens follow.
Measured is by how much the process grew, from before its KV cache was made; said beside it is what the pools hold. The
tokens must be the same. One JSON line each.
"""

import argparse
import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np

from lines import note

WAYS = ("everything", "windows")
NEW_TOKENS = 16


def measure(directory: Path, tokens: int, sequences: int, way: str) -> None:
    """Print the facts of one way."""
    from linnet.api.loading import load
    from linnet.engine import Engine, Finished, SamplingParams, Submit
    from linnet.process_memory import resident_bytes
    from linnet.settings import BackendSettings, EngineSettings

    longest = tokens + NEW_TOKENS
    settings = EngineSettings(max_model_len=longest, max_sequences=sequences)
    loaded = load(
        directory, policy="fast", kv_cache="auto", quantize=None, keep=(), backend=BackendSettings(), engine=settings
    )
    config = replace(loaded.config, num_blocks=sequences * -(-longest // loaded.config.block_size))
    if way == "everything":
        config = replace(config, window=None, more_groups=())
    before = resident_bytes()
    engine = Engine(loaded.executable, config)
    vocabulary = engine.facts.vocabulary_size
    for number in range(sequences):
        prompt = np.random.default_rng(number).integers(1, vocabulary, tokens)
        params = SamplingParams(temperature=0.0, max_tokens=NEW_TOKENS)
        ids = tuple(prompt.tolist())
        engine.submit(Submit(request_id=number, prompt_token_ids=ids, params=params, max_tokens=NEW_TOKENS))
    found: dict[int, list[int]] = {}
    while engine.has_work:
        for event in engine.step():
            if not isinstance(event, Finished):
                found.setdefault(event.request_id, []).extend(event.token_ids)
    per_block = loaded.executable.kv_bytes_per_block
    sizes = per_block if len(config.groups) == len(per_block) else (sum(per_block),)
    pools = [group.num_blocks * size for group, size in zip(config.groups, sizes, strict=True)]
    grown = resident_bytes() - before
    print(json.dumps({"way": way, "pool_bytes": sum(pools), "grown_bytes": grown, "tokens": found}))


def main() -> None:
    """Both ways in turns, then their ratio."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("model", type=Path)
    parser.add_argument("--tokens", type=int, default=8192)
    parser.add_argument("--sequences", type=int, default=1)
    parser.add_argument("--json", type=Path, help="append the lines to this file")
    parser.add_argument("--way", choices=WAYS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.way:
        measure(options.model, options.tokens, options.sequences, options.way)
        return
    found = {}
    for way in WAYS:
        command = [sys.executable, __file__, str(options.model), "--way", way]
        command += ["--tokens", str(options.tokens), "--sequences", str(options.sequences)]
        said = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
        found[way] = json.loads(said.splitlines()[-1])
    whole, own = (found[way] for way in WAYS)
    assert whole["tokens"] == own["tokens"], "blocks that nobody may see are seen"
    for one in (whole, own):
        note({name: value for name, value in one.items() if name != "tokens"}, options.json)
    sizes = {"prompt_tokens": options.tokens, "sequences": options.sequences}
    ratios = {name: round(own[f"{name}_bytes"] / whole[f"{name}_bytes"], 3) for name in ("pool", "grown")}
    note({"model": options.model.name, **sizes, **ratios}, options.json)


if __name__ == "__main__":
    main()
