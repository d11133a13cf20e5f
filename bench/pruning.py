# SPDX-License-Identifier: Apache-2.0
"""What pruning costs, alone and with codes: KL on text that nobody calibrated on, one line a recipe.

    python bench/pruning.py src/linnet/demo/model --calibration src/linnet/demo/calibration.txt \
        --foreign src/linnet/demo/heldout.txt

``zeros``: every criterion at 50 %, 2:4 and 4:8. ``units``: neurons, heads, KV groups, layers, by every importance.
``together``: 2:4 and a fifth of the neurons under W4A16, beside each of them alone and the sum of their KLs. The model
against itself in other arithmetic comes first: it is the noise floor. Results are kept under --work, so that a stopped
run goes on.
"""

import argparse
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from calibration import CONTEXT, spread
from linnet.api import LLM
from linnet.compress import compress, recipe_from
from linnet.evals.text_loss import Windows, compare

Steps = list[dict[str, Any]]
PATTERNS = ("50%", "2:4", "4:8")
CRITERIA = ("magnitude", "wanda", "esparse", "sparsegpt")
GPTQ = {"step": "quantise", "algorithm": "gptq", "scheme": "W4A16-g64", "group_size": "auto"}


def zeros() -> Iterator[tuple[str, Steps]]:
    """Every criterion and pattern; shares by outliers beside the uniform ones."""
    for pattern in PATTERNS:
        for name in CRITERIA:
            yield f"{name} {pattern}", [_sparsify(name, pattern)]
    for name in ("wanda", "sparsegpt"):
        for pattern in ("50%", "70%"):
            if pattern not in PATTERNS:
                yield f"{name} {pattern}", [_sparsify(name, pattern)]
            yield f"{name} {pattern}, shares by outliers", [_sparsify(name, pattern, shares="outliers")]


def units() -> Iterator[tuple[str, Steps]]:
    """Whole units by every importance that ranks them."""
    for options in (
        {"what": "neurons", "ratio": 0.2},
        {"what": "heads", "ratio": 0.5},
        {"what": "kv_groups", "count": 1},
    ):
        for name in ("magnitude", "wanda", "zeros"):
            yield f"{_shown(options)} by {name}", [_prune(name, options)]
    for count in (1, 2):
        for name in ("magnitude", "influence"):
            yield f"{count} layers by {name}", [_prune(name, {"what": "layers", "count": count})]


def together() -> Iterator[tuple[str, Steps]]:
    """Zeros or fewer neurons, codes, and both."""
    yield "W4A16-g64 gptq", [GPTQ]
    for name in ("wanda", "sparsegpt"):
        yield f"{name} 2:4", [_sparsify(name, "2:4")]
        yield f"{name} 2:4 + W4A16-g64 gptq", [_sparsify(name, "2:4"), GPTQ]
    fewer = _prune("wanda", {"what": "neurons", "ratio": 0.2})
    yield "20 % of the neurons by wanda", [fewer]
    yield "20 % of the neurons by wanda + W4A16-g64 gptq", [fewer, GPTQ]


PARTS = {"zeros": zeros, "units": units, "together": together}


def main() -> None:
    """Compress, measure, print one line a result."""
    options = _arguments()
    settings = {
        "policy": "exact",
        "max_model_len": CONTEXT,
        "max_sequences": 4,
        "num_blocks": 4 * (CONTEXT // 16 + 1),
        "prefix_cache": False,
    }
    with LLM(options.model, **settings) as reference:
        cut = spread(reference, options.foreign, options.windows)
        print("| recipe | KL (nats/token) | 95 % | perplexity | same top | MiB | seconds |")
        print("|---|---|---|---|---|---|---|", flush=True)
        with LLM(options.model, **{**settings, "policy": "fast"}) as other:
            _measure("none (noise floor)", other, reference, cut, "| | |")
        for part in options.parts:
            for name, steps in PARTS[part]():
                started = time.monotonic()
                result = compress(options.model, _target(options, name), _recipe(options, steps), overwrite=True)
                sizes = f"| {result.output_bytes / 2**20:.1f} | {time.monotonic() - started:.0f} |"
                with LLM(result.path, **settings) as candidate:
                    _measure(name, candidate, reference, cut, sizes)


def _target(options: argparse.Namespace, name: str) -> Path:
    words = "".join(letter if letter.isalnum() else "-" for letter in name)
    return Path(options.work / f"{options.model.name}-{words}-{options.rows}")


def _recipe(options: argparse.Namespace, steps: Steps) -> Any:
    return recipe_from(
        {"steps": steps, "calibration": str(options.calibration), "calibration_rows": options.rows}
        | ({"calibration_length": options.length} if options.length else {})
    )


def _measure(name: str, candidate: LLM, reference: LLM, cut: Windows, sizes: str) -> None:
    loss = compare(candidate, reference, cut, lambda stage, done, total: None)
    kl = loss.kl_mean
    print(
        f"| {name} | {kl.value:.4f} | {kl.low:.4f} to {kl.high:.4f} | {loss.candidate_perplexity.value:.2f} "
        f"| {loss.top1_agreement.value:.1%} {sizes}",
        flush=True,
    )


def _sparsify(name: str, pattern: str, **options: Any) -> dict[str, Any]:
    return {"step": "sparsify", "algorithm": name, "options": {"pattern": pattern, **options}}


def _prune(name: str, options: dict[str, Any]) -> dict[str, Any]:
    return {"step": "prune", "algorithm": name, "options": options}


def _shown(options: dict[str, Any]) -> str:
    many = f"{options['ratio']:.0%}" if "ratio" in options else str(options["count"])
    return f"{many} of the {options['what'].replace('_', ' ')}"


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--calibration", type=Path, required=True, metavar="FILE")
    parser.add_argument("--foreign", type=Path, required=True, metavar="FILE", help="text to measure on")
    parser.add_argument("--parts", nargs="+", default=list(PARTS), choices=list(PARTS))
    parser.add_argument("--rows", type=int, default=16)
    parser.add_argument("--length", type=int, help="tokens of a calibration row")
    parser.add_argument("--windows", type=int, default=16, help="of 512 tokens")
    parser.add_argument("--work", type=Path, default=Path("scratch/pruning"))
    return parser.parse_args()


if __name__ == "__main__":
    main()
