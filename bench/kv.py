# SPDX-License-Identifier: Apache-2.0
"""Which layers' keys and values bear rounding least: KL with one layer's KV cache rounded after the other.

    python bench/kv.py MODEL --element int4 --keep 2

Weights and all other arithmetic stay as they are. Then all layers at once, and all but the --keep most fragile ones,
which is what a rule of a calibrate step makes of them; the rule is printed.

    python bench/kv.py MODEL --recall 16 64 250

Instead: pieces of the text, each twice in a row. How likely does the model think the second time's tokens, which it has
to find so many tokens ago, with every element of the cache?
"""

import argparse
import json
import tempfile
from collections.abc import Collection
from pathlib import Path
from typing import Any

import numpy as np

from ladder import text_windows
from linnet.api import LLM
from linnet.compress.caches import cache_record
from linnet.evals.text_loss import TextLoss, compare
from linnet.models import load_model
from linnet.schemes.elements import ElementName

ELEMENTS: dict[str, ElementName] = {"int8": "int8", "fp8": "fp8_e4m3", "int4": "int4"}


def cache_settings(context: int) -> dict[str, Any]:
    """How models are opened whose caches are compared: exact, four sequences of so many tokens, nothing reused."""
    return {
        "policy": "exact",
        "max_model_len": context,
        "max_sequences": 4,
        "num_blocks": 4 * (context // 16 + 1),
        "prefix_cache": False,
    }


def main() -> None:
    """Measure layer by layer, print one table."""
    options = _arguments()
    spec = load_model(options.model).spec
    modules = [spec.attention_module(layer) for layer in range(len(spec.layers))]
    settings = cache_settings(options.context)
    with LLM(options.model, **settings) as reference:
        if options.recall:
            _recall(options, settings, reference)
            return
        windows = text_windows(reference, options.text, options.context, options.tokens)

        def loss(rounded: Collection[str]) -> TextLoss:
            with tempfile.TemporaryDirectory() as place:
                plain = [module for module in modules if module not in rounded]
                directory = prescribing(options.model, Path(place), ELEMENTS[options.element], plain)
                with LLM(directory, **settings) as candidate:
                    return compare(candidate, reference, windows, lambda stage, done, total: None)

        print(f"KV as {options.element}, {windows.scored_tokens} tokens")
        print("| layers | KL (nats/token) | 95 % |\n|---|---|---|")
        alone = {module: _line(module, loss([module])) for module in modules}
        _line("all", loss(modules))
        fragile = sorted(alone, key=lambda module: -alone[module])[: options.keep]
        _line(f"all but {', '.join(fragile)}", loss([module for module in modules if module not in fragile]))
    for module in fragile:
        print(f"- {{match: {module}, options: {{kv: dense}}}}")


def _recall(options: argparse.Namespace, settings: dict[str, Any], reference: LLM) -> None:
    """Mean log-probability of a token that stood so many tokens ago, by distance and element."""
    windows = text_windows(reference, options.text, options.context, options.tokens)
    print(f"| distance | tokens | original | {' | '.join(ELEMENTS)} |\n|---|---|---|{'---|' * len(ELEMENTS)}")
    for distance in options.recall:
        pieces = [row[:distance] for row in windows.rows if len(row) >= distance]
        rows, starts = [piece * 2 for piece in pieces], [distance] * len(pieces)
        found, before = list[float](), 0.0
        for element in ELEMENTS.values():
            with tempfile.TemporaryDirectory() as place:
                with LLM(prescribing(options.model, Path(place), element, ()), **settings) as candidate:
                    heard = candidate.compare(reference, rows, starts=starts)
            found.append(float(np.mean(np.concatenate([window.logprobs for window in heard]))))
            before = float(np.mean(np.concatenate([window.reference_logprobs for window in heard])))
        shown = " | ".join(f"{value:.4f}" for value in (before, *found))
        print(f"| {distance} | {distance * len(pieces)} | {shown} |", flush=True)


def _line(name: str, loss: TextLoss) -> float:
    kl = loss.kl_mean
    print(f"| {name} | {kl.value:.6f} | {kl.low:.6f} to {kl.high:.6f} |", flush=True)
    return kl.value


def prescribing(model: Path, place: Path, element: ElementName, plain: Collection[str]) -> Path:
    """The model, its files linked to, with a config that prescribes a KV cache for all but these attention modules."""
    for file in model.iterdir():
        if file.name not in ("config.json", "linnet_manifest.json"):
            (place / file.name).symlink_to(file.resolve())
    config = json.loads((model / "config.json").read_text(encoding="utf-8"))
    config["quantization_config"] = {
        "quant_method": "compressed-tensors",
        "format": "dense",
        "config_groups": {},
        "kv_cache_scheme": cache_record(element, calibrated=False),
        "ignore": list(plain),
    }
    (place / "config.json").write_text(json.dumps(config), encoding="utf-8")
    return place


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--element", choices=ELEMENTS, default="int4")
    parser.add_argument("--keep", type=int, default=2, help="layers that are kept plain in the last line")
    parser.add_argument("--recall", type=int, nargs="*", default=[], help="distances in tokens")
    parser.add_argument("--text", type=Path, help="text to measure on; without it the built-in held-out text")
    parser.add_argument("--context", type=int, default=512, help="tokens of a window")
    parser.add_argument("--tokens", type=int, default=4096, help="tokens that are measured")
    return parser.parse_args()


if __name__ == "__main__":
    main()
