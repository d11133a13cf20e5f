# SPDX-License-Identifier: Apache-2.0
"""Which layers' keys and values bear rounding least: KL with one layer's KV cache rounded after the other.

    python bench/kv.py MODEL --element int4 --keep 2

Weights and all other arithmetic stay as they are. Then all layers at once, and all but the --keep most fragile ones,
which is what a rule of a calibrate step makes of them; the rule is printed.
"""

import argparse
import json
import tempfile
from collections.abc import Collection
from pathlib import Path

from ladder import text_windows
from linnet.api import LLM
from linnet.compress.caches import cache_record
from linnet.evals.text_loss import TextLoss, compare
from linnet.models import load_model
from linnet.schemes.elements import ElementName

ELEMENTS: dict[str, ElementName] = {"int8": "int8", "fp8": "fp8_e4m3", "int4": "int4"}


def main() -> None:
    """Measure layer by layer, print one table."""
    options = _arguments()
    spec = load_model(options.model).spec
    modules = [spec.attention_module(layer) for layer in range(len(spec.layers))]
    settings = {
        "policy": "exact",
        "max_model_len": options.context,
        "max_sequences": 4,
        "num_blocks": 4 * (options.context // 16 + 1),
        "prefix_cache": False,
    }
    with LLM(options.model, **settings) as reference:
        windows = text_windows(reference, options.text, options.context, options.tokens)

        def loss(rounded: Collection[str]) -> TextLoss:
            with tempfile.TemporaryDirectory() as place:
                plain = [module for module in modules if module not in rounded]
                directory = _prescribing(options.model, Path(place), ELEMENTS[options.element], plain)
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


def _line(name: str, loss: TextLoss) -> float:
    kl = loss.kl_mean
    print(f"| {name} | {kl.value:.6f} | {kl.low:.6f} to {kl.high:.6f} |", flush=True)
    return kl.value


def _prescribing(model: Path, place: Path, element: ElementName, plain: Collection[str]) -> Path:
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
    parser.add_argument("--text", type=Path, help="text to measure on; without it the built-in held-out text")
    parser.add_argument("--context", type=int, default=512, help="tokens of a window")
    parser.add_argument("--tokens", type=int, default=4096, help="tokens that are measured")
    return parser.parse_args()


if __name__ == "__main__":
    main()
