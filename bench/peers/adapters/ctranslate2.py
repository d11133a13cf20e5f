# SPDX-License-Identifier: Apache-2.0
"""CTranslate2's generator, int8 (activations quantised too, its default for that type)."""

import json
import time
from pathlib import Path

import ctranslate2


def open_model(path, settings):
    """CTranslate2 takes pieces, not ids; a callback tells when a step's token is there."""
    generator = ctranslate2.Generator(
        path, device="cpu", compute_type="int8", intra_threads=settings["threads"], inter_threads=1
    )
    pieces = json.loads((Path(path) / "vocabulary.json").read_text(encoding="utf-8"))

    def run(prompts, new):
        batch = [[pieces[token] for token in prompt] for prompt in prompts]
        counts, times = [0] * len(prompts), []

        def heard(result):
            counts[result.batch_id] += 1
            if counts[result.batch_id] == 1:
                times.append(time.perf_counter())
            return False

        started = time.perf_counter()
        results = generator.generate_batch(
            batch,
            max_length=new,
            min_length=new,
            beam_size=1,
            sampling_topk=1,
            include_prompt_in_result=False,
            return_end_token=True,
            callback=heard,
        )
        total = time.perf_counter() - started
        lengths = [len(result.sequences_ids[0]) for result in results]
        if min(lengths) < new - 1:
            raise SystemExit(f"CTranslate2 generated {lengths} tokens instead of {new} each")
        return times[-1] - started, total

    return run
