# SPDX-License-Identifier: Apache-2.0
"""Linnet's compression beside llm-compressor's, AutoRound's and GPTQModel's, same model, rows and scheme.

    python bench/compress_peers.py MODEL --calibration FILE --text NAME=FILE ... [--rounds 1] [--only REGEX]

Each contender compresses in a process of its own, one after the other and round by round in turns, on the very token
rows that Linnet draws of the calibration text's first half. Every result is then read by Linnet: KL against the
original in exact arithmetic, on windows of the second half of each text, with 95 % intervals over windows. Peers are
installed on first use, each into an environment of its own under --cache, torch first and pinned (pip then takes the
newest GPTQModel that accepts it); one that does not install or run is skipped in words. Seconds count only on an idle
machine: see foreign_cores, the cores that other processes took meanwhile. Neither kind of seconds counts imports.
"""

import argparse
import json
import re
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np

from foreign import ForeignLoad
from methods import first_half, second_half
from samples import markdown

BENCH = Path(__file__).resolve().parent
sys.path.insert(0, str(BENCH / "peers"))

from install import Recipe, install  # noqa: E402

from linnet.api import LLM  # noqa: E402
from linnet.evals.text_loss import compare  # noqa: E402
from linnet.text.rows import calibration_rows  # noqa: E402
from linnet.text.tokenizer import Tokenizer  # noqa: E402

CONTEXT = 512
ENVIRONMENTS = {
    "llm-compressor": Recipe(
        "llm-compressor", "llmcompressor", "llmcompressor", ("llmcompressor",), uninstall=("torchvision",)
    ),
    "auto-round": Recipe("auto-round", "auto_round", "auto_round", ("auto-round",), uninstall=("torchvision",)),
    "gptqmodel": Recipe("gptqmodel", "gptqmodel", "gptqmodel", ("gptqmodel", "numpy")),
}
OURS: dict[str, tuple[str, dict[str, Any]]] = {
    "Linnet": ("gptq", {}),
    "Linnet, no act_order": ("gptq", {"act_order": False}),
    "Linnet autoround": ("autoround", {}),
}
"""Contender -> algorithm and its options."""
THEIRS = {
    "llm-compressor": "llm-compressor",
    "llm-compressor mse": "llm-compressor",
    "auto-round": "auto-round",
    "gptqmodel": "gptqmodel",
    "gptqmodel mse": "gptqmodel",
}
"""Contender -> environment."""


def main() -> None:
    """Compress in turns, measure, print a table and a JSON line."""
    options = _arguments()
    for folder in ("model", "calibration", "cache", "work"):
        setattr(options, folder, getattr(options, folder).resolve())
    contenders = [name for name in (*OURS, *THEIRS) if re.search(options.only, name)]
    rows = calibration_rows(
        Tokenizer.open(options.model), first_half(options.calibration), options.rows, CONTEXT, 0, "calibration"
    )
    options.work.mkdir(parents=True, exist_ok=True)
    np.save(options.work / "rows.npy", rows.token_ids)
    costs: dict[str, list[dict[str, float]]] = {}
    for _ in range(options.rounds):
        for name in list(contenders):
            try:
                costs.setdefault(name, []).append(_compress(name, options))
            except RuntimeError as error:
                print(f"{name} is skipped: {error}", flush=True)
                contenders.remove(name)
    losses = _losses(contenders, options)
    header = ["", "s", "CPU s", "peak MB", "foreign cores", "MB", *(f"KL, {name}" for name in losses)]
    table = []
    for name in contenders:
        seconds, computed, peak, foreign = (
            statistics.median(each[key] for each in costs[name])
            for key in ("seconds", "cpu_seconds", "peak_bytes", "foreign_cores")
        )
        size = sum(path.stat().st_size for path in _target(name, options).glob("*.safetensors"))
        cells = [name, f"{seconds:.0f}", f"{computed:.0f}", f"{peak / 1e6:.0f}", f"{foreign:.2f}", f"{size / 1e6:.1f}"]
        table.append([*cells, *(of_text[name] for of_text in losses.values())])
    print(markdown(header, table))
    print(json.dumps(costs))


def _target(name: str, options: argparse.Namespace) -> Path:
    found: Path = options.work / re.sub(r"\W+", "-", name)
    return found


def _compress(name: str, options: argparse.Namespace) -> dict[str, float]:
    """Seconds, peak bytes and foreign cores of one compression; RuntimeError, in a sentence, if it cannot be done."""
    target = _target(name, options)
    if name in OURS:
        algorithm, chosen = OURS[name]
        if algorithm == "autoround":
            chosen = chosen | {"iterations": options.iterations}
        recipe = {
            "scheme": f"W{options.bits}A16-g{options.group_size}",
            "algorithm": algorithm,
            "options": chosen,
            "calibration_rows": options.rows,
            "calibration_length": CONTEXT,
        }
        job: dict[str, Any] = {"recipe": recipe, "budget": None, "calibration": str(options.calibration)}
        command = [sys.executable, str(BENCH / "methods.py"), "--one"]
    else:
        environment = ENVIRONMENTS[THEIRS[name]]
        if reason := install(environment, options.cache, sys.executable):
            raise RuntimeError(reason)
        job = {"peer": name, "rows": str(options.work / "rows.npy")}
        job |= {"bits": options.bits, "group_size": options.group_size, "iterations": options.iterations}
        python = options.cache / environment.environment / "bin" / "python"
        command = [str(python), "-P", str(BENCH / "peers" / "compressors.py")]
    job |= {"model": str(options.model), "target": str(target)}
    log = target.with_suffix(".log")
    foreign = ForeignLoad()
    with log.open("w", encoding="utf-8") as file:
        ended = subprocess.run(
            [*command, json.dumps(job)], stdout=subprocess.PIPE, stderr=file, text=True, check=False, cwd=options.work
        )  # there, since GPTQModel leaves a folder of logs where it is called
    if ended.returncode:
        said = [line for line in log.read_text(encoding="utf-8").splitlines() if line.strip()]
        raise RuntimeError(f"it ended with status {ended.returncode} ({said[-1] if said else 'it said nothing'})")
    found = json.loads(ended.stdout.strip().splitlines()[-1])
    return {**found, "foreign_cores": foreign.cores()}


def _losses(contenders: list[str], options: argparse.Namespace) -> dict[str, dict[str, str]]:
    """Text -> contender -> KL with its interval."""
    settings: dict[str, Any] = {"max_model_len": CONTEXT, "max_sequences": 4, "prefix_cache": False, "policy": "exact"}
    found: dict[str, dict[str, str]] = {}
    with LLM(options.model, **settings) as original:
        for pair in options.text:
            name, _, path = pair.partition("=")
            text = second_half(Path(path), options.windows)
            cut = text.cut(original, CONTEXT, CONTEXT, options.windows * CONTEXT)
            for contender in contenders:
                with LLM(_target(contender, options), **settings) as candidate:
                    kl = compare(candidate, original, cut, lambda stage, done, total: None).kl_mean
                cell = f"{kl.value:.4f} [{kl.low:.4f}, {kl.high:.4f}]"
                found.setdefault(f"{name} ({cut.scored_tokens:,} tokens)", {})[contender] = cell
    return found


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path, help="a dense Hugging Face directory")
    parser.add_argument("--calibration", type=Path, required=True)
    parser.add_argument("--text", nargs="+", required=True, metavar="NAME=FILE")
    parser.add_argument("--bits", type=int, default=4)
    parser.add_argument("--group-size", type=int, default=64)
    parser.add_argument("--rows", type=int, default=16, help="of 512 tokens")
    parser.add_argument("--windows", type=int, default=16, help="of 512 tokens, of each text")
    parser.add_argument("--iterations", type=int, default=200, help="of AutoRound, theirs and ours")
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--only", default="", help="contenders whose name this regular expression finds")
    parser.add_argument("--cache", type=Path, default=Path("scratch/peers"))
    parser.add_argument("--work", type=Path, default=Path("scratch/compress_peers"))
    return parser.parse_args()


if __name__ == "__main__":
    main()
