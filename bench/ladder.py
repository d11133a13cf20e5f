# SPDX-License-Identifier: Apache-2.0
"""What rounding activations and the KV cache costs, from weak to strong: one table of recipes on one model.

    python bench/ladder.py MODEL --rungs w8a8 w4a4 --calibration web.txt --text other_web.txt

Every rung is compressed with the same calibration rows and measured against the original on the same windows of a
text that nobody calibrated on, in arithmetic that rounds nothing but what the checkpoint prescribes. The model against
itself comes first: the noise floor. Results are kept under --work, so that a stopped run goes on where it was.
"""

import argparse
import re
import time
from pathlib import Path
from typing import Any

from linnet.api import LLM, own_text
from linnet.cli.evaluating import heldout_text
from linnet.compress import compress, recipe_from
from linnet.evals.text_loss import Windows, compare, document_windows
from linnet.text.files import read_corpus

CONTEXT = 512
SMOOTH: dict[str, Any] = {"step": "smooth", "algorithm": "smoothquant"}
KEYS: dict[str, Any] = {"step": "smooth", "algorithm": "smoothattention"}
HALF: dict[str, Any] = {**SMOOTH, "options": {"alpha": 0.5}}
ROTATE: dict[str, Any] = {"step": "rotate", "algorithm": "quarot"}
VALUES: dict[str, Any] = {**ROTATE, "options": {"values": True}}
ONLINE: dict[str, Any] = {**ROTATE, "options": {"values": True, "online": True}}
HEADS: dict[str, Any] = {**ROTATE, "options": {"values": True, "online": True, "heads": True}}
ALL: dict[str, Any] = {**ROTATE, "options": {"values": True, "online": True, "keys": True}}


def rounded(scheme: str, algorithm: str = "rtn", **more: Any) -> dict[str, Any]:
    """A quantise step."""
    return {"step": "quantise", "algorithm": algorithm, "scheme": scheme, "group_size": "auto", **more}


def static(scales: str) -> dict[str, Any]:
    """A calibrate step."""
    return {"step": "calibrate", "algorithm": "static", "options": {"scales": scales}}


LADDERS: dict[str, dict[str, list[dict[str, Any]]]] = {
    "w8a8": {
        "W8A16": [rounded("W8A16")],
        "W8A8-static, min-max": [static("minmax"), rounded("W8A8-static")],
        "W8A8-static": [static("mse"), rounded("W8A8-static")],
        "W8A8-static, smoothed": [SMOOTH, static("mse"), rounded("W8A8-static")],
        "W8A8-static, smoothed by half": [HALF, static("mse"), rounded("W8A8-static")],
        "W8A8": [rounded("W8A8")],
        "W8A8, smoothed": [SMOOTH, rounded("W8A8")],
        "W8A8-kv8, smoothed": [SMOOTH, rounded("W8A8-kv8")],
        "FP8": [rounded("FP8")],
        "FP8_STATIC, min-max": [static("minmax"), rounded("FP8_STATIC")],
        "FP8_STATIC": [static("mse"), rounded("FP8_STATIC")],
        "FP8_DYNAMIC": [rounded("FP8_DYNAMIC")],
        "W8A8C8": [static("minmax"), rounded("W8A8C8")],
        "W8A8C8, smoothed": [SMOOTH, static("minmax"), rounded("W8A8C8")],
    },
    "kv": {
        "W8A16": [rounded("W8A16")],
        "W8A16-kv8": [rounded("W8A16-kv8")],
        "W8A16-kvfp8": [rounded("W8A16-kvfp8")],
        "W8A16-kv4": [rounded("W8A16-kv4")],
        "W8A16-kv4, keys smoothed": [KEYS, rounded("W8A16-kv4")],
    },
    "w4a4": {
        "W4A16 (weights alone)": [rounded("W4A16", "gptq")],
        "W4A8": [rounded("W4A8", "gptq")],
        "W4A4": [rounded("W4A4", "gptq")],
        "W4A4, rotated": [ROTATE, rounded("W4A4", "gptq")],
        "W4A4, rotated, values too": [VALUES, rounded("W4A4", "gptq")],
        "W4A4, rotated, values too, and smoothed": [VALUES, SMOOTH, rounded("W4A4", "gptq")],
        "W4A4, rotated, values too, and at run time": [ONLINE, rounded("W4A4", "gptq")],
        "W4A4, rotated, values too, and at run time, heads too": [HEADS, rounded("W4A4", "gptq")],
        "W4A4, rotated, values too, and at run time, and smoothed": [ONLINE, SMOOTH, rounded("W4A4", "gptq")],
        "W4A4-kv4, rotated, values too, and at run time": [ONLINE, rounded("W4A4-kv4", "gptq")],
        "W4A4-kv4, rotated, values too, and at run time, keys too": [ALL, rounded("W4A4-kv4", "gptq")],
        "W4A4, smoothed": [SMOOTH, rounded("W4A4", "gptq")],
        "W4A4, rotated and smoothed": [ROTATE, SMOOTH, rounded("W4A4", "gptq")],
        "W4A4-ag32": [rounded("W4A4-ag32", "gptq")],
        "W4A4-ag32, rotated and smoothed": [ROTATE, SMOOTH, rounded("W4A4-ag32", "gptq")],
        "W4A4-ag32, rotated, values too, and smoothed": [VALUES, SMOOTH, rounded("W4A4-ag32", "gptq")],
        "W4A4-ag32, rotated, values too, and at run time, and smoothed": [
            ONLINE,
            SMOOTH,
            rounded("W4A4-ag32", "gptq"),
        ],
        "W4A4-ag32, rotated, values too, and at run time, heads too, and smoothed": [
            HEADS,
            SMOOTH,
            rounded("W4A4-ag32", "gptq"),
        ],
    },
}


def main() -> None:
    """Compress, measure, print one line a rung."""
    options = _arguments()
    with LLM(options.model, **_settings(options)) as reference:
        windows = text_windows(reference, options.text, options.context, options.tokens)
        print("| recipe | MiB | KL (nats/token) | 95 % | p99 | perplexity | same top | seconds |")
        print("|---|---|---|---|---|---|---|---|", flush=True)
        _line("original, again", options.model, reference, windows, options, None)
        for ladder in options.rungs:
            for name, steps in LADDERS[ladder].items():
                if not re.search(options.only, name):
                    continue
                target = options.work / f"{options.model.name}-{ladder}-{name.replace(' ', '-').replace(',', '')}"
                record = {"steps": steps, "calibration_rows": options.rows, "calibration_length": options.length}
                if options.calibration is not None:
                    record["calibration"] = str(options.calibration)
                begun = time.process_time()
                compress(options.model, target, recipe_from(record), write_text=own_text, overwrite=True)
                _line(name, target, reference, windows, options, time.process_time() - begun)


def text_windows(llm: LLM, text: Path | None, context: int, tokens: int) -> Windows:
    """Windows of the built-in text, or at equal distances over a file, each a document of its own."""
    if text is None:
        return heldout_text().cut(llm, context, context, tokens)
    whole, count = read_corpus(text), -(-tokens // context)
    step = len(whole) // count
    pieces = [whole[place * step : place * step + min(step, 8 * context)] for place in range(count)]
    return document_windows([llm.tokenizer.encode(piece)[:context] for piece in pieces], context, context)


def _settings(options: argparse.Namespace) -> dict[str, Any]:
    return {
        "policy": "exact",
        "max_model_len": options.context,
        "max_sequences": 4,
        "num_blocks": 4 * (options.context // 16 + 1),
        "prefix_cache": False,
    }


def _line(
    name: str, path: Path, reference: LLM, windows: Windows, options: argparse.Namespace, seconds: float | None
) -> None:
    with LLM(path, **_settings(options)) as candidate:
        loss = compare(candidate, reference, windows, lambda stage, done, total: None)
        size = candidate.checkpoint.nbytes / 2**20
    kl = loss.kl_mean
    print(
        f"| {name} | {size:.1f} | {kl.value:.5f} | {kl.low:.5f} to {kl.high:.5f} | {loss.kl_p99:.4f} "
        f"| {loss.candidate_perplexity.value:.3f} | {loss.top1_agreement.value:.1%} "
        f"| {'' if seconds is None else f'{seconds:.0f}'} |",
        flush=True,
    )


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--rungs", nargs="+", choices=LADDERS, default=list(LADDERS))
    parser.add_argument("--only", default="", help="a regular expression: the rungs whose names match")
    parser.add_argument("--rows", type=int, default=16, help="calibration rows")
    parser.add_argument("--length", type=int, default=256, help="tokens of a calibration row")
    parser.add_argument("--calibration", type=Path, help="text to calibrate on; without it the model's own")
    parser.add_argument("--text", type=Path, help="text to measure on; without it the built-in held-out text")
    parser.add_argument("--context", type=int, default=CONTEXT, help="tokens of a window")
    parser.add_argument("--tokens", type=int, default=4096, help="tokens that are measured")
    parser.add_argument("--work", type=Path, default=Path("scratch/ladder"))
    return parser.parse_args()


if __name__ == "__main__":
    main()
