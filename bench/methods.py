# SPDX-License-Identifier: Apache-2.0
"""Every compression method on a model: bytes, perplexity, KL, abilities, seconds, peak memory, decoding.

    python bench/methods.py MODEL --calibration FILE --text FILE [--questions FILE | general | none] [--only REGEX]
    python bench/methods.py src/linnet/demo/model --name bundled
    python bench/methods.py --page

Rows go to bench/results/methods.jsonl, each under the digest of what decides it: model, recipe, calibration text,
evaluation text, questions, settings. A row that is there is not measured again (--again: it is), so a stopped run goes
on; --limit-s ends one in time. --page makes docs/methods.md and docs/recipes.md of the rows. Compressing happens in a
process of its own, whose times and peak memory are the row's; decoding in turns with the original.
"""

import argparse
import hashlib
import json
import re
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec

from lines import note
from linnet import demo, evals
from linnet.api import LLM, SamplingParams
from linnet.cli.evaluating import heldout_text
from linnet.compress import Recipe, compress, make_recipe, mix, read_recipe, recipe_from, recipe_names
from linnet.compress.mixed import candidates
from linnet.formats import Checkpoint
from linnet.process_memory import peak_bytes
from linnet.text.files import read_corpus
from methods_page import write_pages

RESULTS = Path(__file__).parent / "results" / "methods.jsonl"
ROW_VERSION = 1
CONTEXT, STRIDE = 512, 512


@dataclass(frozen=True)
class Method:
    """``budget``: that of one scheme everywhere, shared out anew (None: the recipe as it is)."""

    name: str
    recipe: Recipe
    budget: str | None = None


def every_method() -> list[Method]:
    """By bits, then the recipes of the package, which chain them."""
    found = [Method(f"{scheme} {name}", recipe) for scheme, name, recipe in _by_bits()]
    for name, rank in (("lqer", 16), ("eora", 16)):
        steps = [_quantise("W3A16-g64"), {"step": "repair", "algorithm": name, "options": {"rank": rank}}]
        found.append(Method(f"W3A16-g64 gptq + {name} {rank}", recipe_from({"steps": steps})))
    for name in ("svd", "asvd", "svd_llm"):
        steps = [{"step": "factorise", "algorithm": name, "options": {"share": 0.75}}]
        found.append(Method(f"75% {name}", recipe_from({"steps": steps})))
    for name, options in (
        *(
            (name, {"what": "neurons", "ratio": 0.25, "multiple": 16})
            for name in ("magnitude", "wanda", "zeros", "taylor")
        ),
        ("influence", {"what": "layers", "count": 1, "leave": [0, -1]}),
    ):
        steps = [{"step": "prune", "algorithm": name, "options": options}]
        found.append(Method(f"prune {options['what']} {name}", recipe_from({"steps": steps})))
    for pattern in ("50%", "2:4", "4:8"):
        for name in ("magnitude", "wanda", "esparse", "sparsegpt"):
            steps = [{"step": "sparsify", "algorithm": name, "options": {"pattern": pattern}}]
            found.append(Method(f"{pattern} {name}", recipe_from({"steps": steps})))
    both = [{"step": "sparsify", "algorithm": "sparsegpt", "options": {"pattern": "2:4"}}, _quantise("W4A16-g64")]
    found.append(Method("2:4 sparsegpt + W4A16-g64 gptq", recipe_from({"steps": both})))
    for scheme in ("W4A16-g64", "W3A16-g64"):
        found.append(Method(f"mixed, bytes of {scheme}", make_recipe(scheme, "gptq"), scheme))
    return [*found, *(Method(f"recipe {name}", read_recipe(name)) for name in recipe_names())]


def _quantise(scheme: str) -> dict[str, str]:
    return {"step": "quantise", "algorithm": "gptq", "scheme": scheme, "group_size": "auto"}


def _by_bits() -> Iterator[tuple[str, str, Recipe]]:
    for scheme in ("W8A16", "W4A16-g64", "W3A16-g64", "W2A16-g64"):
        yield scheme, "rtn", make_recipe(scheme, "rtn", group_size="auto")
        yield scheme, "rtn mse", make_recipe(scheme, "rtn", options={"scales": "mse"}, group_size="auto")
        if scheme != "W8A16":
            for algorithm in ("hqq", "awq", "gptq", "quarot", "autoround"):
                yield scheme, algorithm, make_recipe(scheme, algorithm, group_size="auto")
    for scheme in ("NF4-g64", "TERNARY-g64"):
        yield scheme, "rtn", make_recipe(scheme, "rtn", group_size="auto")
        yield scheme, "gptq", make_recipe(scheme, "gptq", group_size="auto")
    for scheme in ("KMEANS4", "KMEANS2"):
        for algorithm in ("kmeans", "squeezellm"):
            yield scheme, algorithm, make_recipe(scheme, algorithm)
    for scheme, algorithms in (
        ("W8A8", ("rtn", "smoothquant", "llm_int8")),
        ("FP8_DYNAMIC", ("rtn",)),
        ("W4A8-g64", ("gptq",)),
    ):
        for algorithm in algorithms:
            yield scheme, algorithm, make_recipe(scheme, algorithm, group_size="auto")


class Table:
    """One model's rows: what they are measured on, and how."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        self.work = options.work / options.name
        self.settings: dict[str, Any] = {"max_model_len": CONTEXT, "max_sequences": 4, "prefix_cache": False}
        self.calibration = None if options.calibration is None else first_half(options.calibration)
        self.text = heldout_text() if options.text is None else second_half(options.text, options.tokens // CONTEXT)
        self.questions = _questions(options.questions, options.per_ability)
        with Checkpoint.open(options.model, verify=False) as checkpoint:
            self.digest, self.bytes = checkpoint.digest(), checkpoint.nbytes

    def key(self, method: Method) -> str:
        """What decides a row, as one digest."""
        deciding = {
            "version": ROW_VERSION,
            "model": self.digest,
            "recipe": self.recipe(method).digest(),
            "budget": method.budget,
            "calibration": None if self.calibration is None else hashlib.sha256(self.calibration.encode()).hexdigest(),
            "text": self.text.sha256,
            "tokens": self.options.tokens,
            "questions": None if self.questions is None else self.questions.digest,
        }
        return hashlib.sha256(json.dumps(deciding, sort_keys=True).encode()).hexdigest()

    def recipe(self, method: Method) -> Recipe:
        """Of a method, on this table's rows."""
        return msgspec.structs.replace(method.recipe, calibration_rows=self.options.rows)

    def measure(self, methods: Iterable[Method]) -> Iterator[dict[str, Any]]:
        """One row a method."""
        reading = None
        with LLM(self.options.model, **self.settings) as original:
            cut = self.text.cut(original, CONTEXT, STRIDE, self.options.tokens)
            for method in methods:
                if reading is None:
                    with LLM(self.options.model, policy="exact", **self.settings) as exact:
                        reading = evals.measure_baseline(original, exact, cut, self.questions, _silent)
                target = self.work / re.sub(r"\W+", "-", method.name)
                made = self._compress(method, target)
                report = evals.evaluate(
                    target,
                    self.options.model,
                    self._open,
                    policy="fast",
                    text=self.text,
                    questions=self.questions,
                    context=CONTEXT,
                    stride=STRIDE,
                    max_tokens=self.options.tokens,
                    created=datetime.now(UTC).isoformat(timespec="seconds"),
                    progress=_silent,
                    baseline=reading,
                )
                speeds = {}
                if not self.options.busy:
                    with LLM(target, **self.settings) as candidate:
                        speeds = _decode_in_turns(candidate, original)
                shutil.rmtree(target)
                yield self._row(method, made, report, speeds)

    def _open(self, path: Path, policy: str, kv_cache: str = "auto") -> LLM:
        return LLM(path, policy=policy, kv_cache=kv_cache, **self.settings)

    def _compress(self, method: Method, target: Path) -> dict[str, Any]:
        """In a process of its own."""
        target.parent.mkdir(parents=True, exist_ok=True)
        job = {
            "model": str(self.options.model),
            "target": str(target),
            "recipe": msgspec.to_builtins(self.recipe(method)),
            "budget": method.budget,
            "calibration": None if self.options.calibration is None else str(self.options.calibration),
        }
        command = [sys.executable, str(Path(__file__).resolve()), "--one", json.dumps(job)]
        ended = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
        return dict(json.loads(ended.stdout.splitlines()[-1]))

    def _row(
        self, method: Method, made: dict[str, Any], report: evals.Report, speeds: dict[str, float]
    ) -> dict[str, Any]:
        assert report.divergence is not None
        assert report.perplexity is not None
        kl, perplexity = report.divergence, report.perplexity
        worse = [each.name for each in report.abilities if each.verdict == "worse"]
        return {
            "key": self.key(method),
            "model": self.options.name,
            "method": method.name,
            "calibration": made["calibration"],
            "bytes": report.candidate.bytes,
            "original_bytes": self.bytes,
            "bits_per_weight": report.candidate.bits_per_weight,
            "perplexity": perplexity.candidate.value,
            "original_perplexity": None if perplexity.reference is None else perplexity.reference.value,
            "kl": [kl.mean.value, kl.mean.low, kl.mean.high],
            "kl_p99": kl.p99,
            "noise_floor": kl.noise_floor,
            "tokens": None if report.text is None else report.text.tokens,
            "abilities": len(report.abilities),
            "worse": worse,
            "seconds": None if self.options.busy else made["seconds"],
            "cpu_seconds": made["cpu_seconds"],
            "peak_bytes": made["peak_bytes"],
            "created": report.created,
            "linnet": report.linnet_version,
            **speeds,
        }


def compress_one(job: dict[str, Any]) -> dict[str, Any]:
    """What the process that compresses does; seconds without its imports, peak bytes with them."""
    recipe, text = recipe_from(job["recipe"]), job["calibration"]
    corpus = None if text is None else first_half(Path(text))
    started, computed = time.perf_counter(), time.process_time()
    if job["budget"] is not None:
        names = candidates(recipe)
        plan = mix(job["model"], recipe, lambda _: 1 << 60, calibration_text=corpus)
        size = next(each.bytes for name, each in zip(names, plan.uniform, strict=True) if name == job["budget"])
        started, computed = time.perf_counter(), time.process_time()
        recipe = mix(job["model"], recipe, lambda _: size, calibration_text=corpus).recipe
    result = compress(job["model"], job["target"], recipe, calibration_text=corpus, overwrite=True)
    calibrated = result.manifest["record"]["calibration"]
    rows = None if calibrated is None else [calibrated["rows"], calibrated["length"]]
    return {
        "seconds": time.perf_counter() - started,
        "cpu_seconds": time.process_time() - computed,
        "peak_bytes": peak_bytes(),
        "calibration": rows,
    }


def _decode_in_turns(candidate: LLM, original: LLM, rounds: int = 3) -> dict[str, float]:
    """Tokens per second of one sequence, medians; and the median ratio of neighbours in time."""
    ours, theirs = [], []
    for _ in range(rounds + 1):
        ours.append(_decode(candidate))
        theirs.append(_decode(original))
    ratios = [mine / other for mine, other in zip(ours[1:], theirs[1:], strict=True)]  # the first is a warming
    return {"decode_tokens_per_s": statistics.median(ours[1:]), "decode_ratio": statistics.median(ratios)}


def _decode(llm: LLM) -> float:
    prompt = [10 + (31 * index) % 1000 for index in range(32)]
    times = [
        time.perf_counter() for _ in llm.stream(prompt, SamplingParams(temperature=0.0, max_tokens=49, ignore_eos=True))
    ]
    return (len(times) - 1) / (times[-1] - times[0])


def first_half(path: Path) -> str:
    """What is calibrated on: the beginning, at most half, of a text whose second half may be evaluated on."""
    text = read_corpus(path)
    return text[: min(len(text) // 2, 4_000_000)]


def second_half(path: Path, windows: int) -> evals.EvaluationText:
    """Documents of a window each at equal distances over the file's second half."""
    text = read_corpus(path)
    text = text[len(text) // 2 :]
    step, most = len(text) // windows, 8 * CONTEXT
    pieces = tuple(text[place * step : place * step + min(step, most)] for place in range(windows))
    return evals.EvaluationText(path.name, pieces)


def _questions(choice: str, per_ability: int | None) -> evals.QuestionSet | None:
    if choice == "none":
        return None
    if choice == "general":
        return evals.subset(evals.general_questions(), per_ability)
    return evals.subset(evals.read_questions(demo.questions_file() if choice == "demo" else Path(choice)), per_ability)


def _silent(stage: str, done: int, total: int) -> None:
    """Progress that nobody reads."""


def read_rows(path: Path = RESULTS) -> dict[str, dict[str, Any]]:
    """Key -> row; of two rows of one key the later one."""
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    return {row["key"]: row for row in map(json.loads, lines)}


def main() -> None:
    """Measure what is missing, or make the pages."""
    options = _arguments()
    if options.one is not None:
        print(json.dumps(compress_one(json.loads(options.one))))
        return
    if options.model is not None:
        options.name = options.name or options.model.resolve().name
        table, known = Table(options), {} if options.again else read_rows()
        wanted = [
            each for each in every_method() if re.search(options.only, each.name) and table.key(each) not in known
        ]
        ends = time.monotonic() + options.limit_s
        RESULTS.parent.mkdir(exist_ok=True)
        for row in table.measure(each for each in wanted if time.monotonic() < ends):
            note(row, RESULTS)
    if options.page:
        write_pages(list(read_rows().values()))


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path, nargs="?")
    parser.add_argument("--name", help="what the page calls the model")
    parser.add_argument(
        "--calibration", type=Path, help="text, of which the first half is used; without it the bundled town"
    )
    parser.add_argument(
        "--text", type=Path, help="of which the second half is used; without it the town's held-out text"
    )
    parser.add_argument("--questions", default="none", help="general, demo, none or a .jsonl file")
    parser.add_argument("--per-ability", type=int)
    parser.add_argument("--rows", type=int, default=64, help="to calibrate on")
    parser.add_argument("--tokens", type=int, default=4096, help="to evaluate on")
    parser.add_argument("--only", default="", help="methods whose name this regular expression finds")
    parser.add_argument("--limit-s", type=float, default=float("inf"), help="begin no row after so many seconds")
    parser.add_argument("--busy", action="store_true", help="others compute too: keep no wall time and no speed")
    parser.add_argument("--again", action="store_true", help="measure rows that are there anew")
    parser.add_argument("--work", type=Path, default=Path("scratch/methods"))
    parser.add_argument("--page", action="store_true", help="write docs/methods.md and docs/recipes.md")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    return parser.parse_args()


if __name__ == "__main__":
    main()
