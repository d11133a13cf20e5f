# SPDX-License-Identifier: Apache-2.0
"""lm-eval through its ``local-completions`` against a served model, and in its own process (``hf``): sample by sample.

    python bench/lm_eval_parity.py MODEL [--samples 40] [--policy exact] [--json FILE]

Needs lm-eval, which Linnet does not install (``pip install 'lm_eval[api]'``). Log-likelihoods of the bundled questions'
choices; fp32 in process, so that under the policy ``exact`` nothing but the order of sums differs. Ends with 1 where a
sample differs by more than 1e-3 or is the likeliest on one side only.
"""

import argparse
import contextlib
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from lines import note
from linnet.demo import questions_file

MOST_DIFFERENCE = 1e-3
NAME = "served"

Pair = tuple[str, str]
"""Context and continuation."""
Score = tuple[float, bool]
"""Log-likelihood of a continuation, and whether each of its tokens is the likeliest."""


def samples(count: int) -> list[Pair]:
    """Of the bundled questions, spread evenly over them."""
    found = []
    for line in questions_file().read_text(encoding="utf-8").splitlines():
        question = json.loads(line)
        found += [(question["prompt"], choice) for choice in question.get("choices", ())]
    return found[:: max(len(found) // count, 1)][:count]


@contextlib.contextmanager
def served(model: Path, policy: str) -> Iterator[str]:
    """A server of the model in a process of its own; its address."""
    command = [sys.executable, "-m", "linnet.cli.main", "serve", str(model), "--policy", policy, "--port", "0"]
    command += ["--served-model-name", NAME, "--log-format", "json"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        try:
            for line in process.stderr:
                told = json.loads(line)
                if told["event"] == "ready":
                    yield told["url"]
                    return
            raise SystemExit(f"linnet serve ended with {process.wait()} before it was ready")
        finally:
            process.terminate()


def scores(made: Any, pairs: list[Pair]) -> list[Score]:
    """What one of lm-eval's models says of them."""
    from lm_eval.api.instance import Instance

    asked = [Instance("loglikelihood", {}, pair, index) for index, pair in enumerate(pairs)]
    return [(float(total), bool(greedy)) for total, greedy in made.loglikelihood(asked)]


def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--samples", type=int, default=40)
    parser.add_argument("--policy", default="exact", choices=("exact", "fast"))
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    try:
        import lm_eval
        from lm_eval.models.huggingface import HFLM
        from lm_eval.models.openai_completions import LocalCompletionsAPI
    except ImportError as error:
        raise SystemExit(f"{error}; this needs lm-eval: pip install 'lm_eval[api]'") from None
    pairs = samples(options.samples)
    with served(options.model, options.policy) as url:
        over_http = scores(
            LocalCompletionsAPI(
                model=NAME, base_url=f"{url}/v1/completions", tokenizer=str(options.model), num_concurrent=4
            ),
            pairs,
        )
    in_process = scores(HFLM(pretrained=str(options.model), dtype="float32", device="cpu", batch_size=1), pairs)
    differences = [abs(ours[0] - theirs[0]) for ours, theirs in zip(over_http, in_process, strict=True)]
    equal = [ours[1] == theirs[1] for ours, theirs in zip(over_http, in_process, strict=True)]
    print("sample  local-completions        in process  difference  likeliest")
    for index, (ours, theirs) in enumerate(zip(over_http, in_process, strict=True)):
        flags = "both" if ours[1] and theirs[1] else "neither" if not (ours[1] or theirs[1]) else "ONE SIDE"
        print(f"{index:6}  {ours[0]:17.6f}  {theirs[0]:16.6f}  {differences[index]:10.1e}  {flags}")
    print(
        f"lm-eval {lm_eval.__version__}, {len(pairs)} samples, policy {options.policy}: largest difference "
        f"{max(differences):.1e}, likeliest on both sides or neither: {sum(equal)} of {len(equal)}"
    )
    found = {"samples": len(pairs), "largest_difference": max(differences), "greedy_equal": sum(equal)}
    note(found, options.json)
    if max(differences) > MOST_DIFFERENCE or not all(equal):
        raise SystemExit(1)


if __name__ == "__main__":
    main()
