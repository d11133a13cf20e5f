# SPDX-License-Identifier: Apache-2.0
"""What a model is calibrated on: KL on text it never saw, for one text or several, the model's own included.

    python bench/calibration.py MODEL --calibration town=src/linnet/demo/calibration.txt web=c4_first_half.txt \
        --foreign web=c4_second_half.txt novels=novels.txt

Every scheme is fitted by GPTQ on the same number of rows of each text and of what the model itself writes. The
baseline (the model against itself in the arithmetic measured) comes first: it is the noise floor. Then rounding to
nearest, which sees no text. Intervals are bootstraps over windows, one window a document, of the foreign text. Results
are kept under --work, so that a stopped run goes on where it was.
"""

import argparse
from collections.abc import Iterator
from pathlib import Path

from linnet.api import LLM, own_text
from linnet.compress import compress, make_recipe
from linnet.evals.text_loss import Windows, compare, document_windows
from linnet.text.files import read_corpus

CONTEXT = 512
CHARACTERS = 8 * CONTEXT
"""Of which a window is cut: more than its tokens, in any language with spaces."""


def main() -> None:
    """Compress, measure, print one line a result."""
    options = _arguments()
    settings = {
        "policy": options.policy,
        "max_model_len": CONTEXT,
        "max_sequences": 4,
        "num_blocks": 4 * (CONTEXT // 16 + 1),
        "prefix_cache": False,
    }
    with LLM(options.model, **settings) as reference:
        texts = {name: spread(reference, path, options.windows) for name, path in _named(options.foreign)}
        print("| scheme | calibrated on | measured on | KL (nats/token) | 95 % | perplexity | original's | same top |")
        print("|---|---|---|---|---|---|---|---|", flush=True)
        with LLM(options.model, **{**settings, "policy": "exact" if options.policy == "fast" else "fast"}) as other:
            _measure("none", "– (noise floor)", other, reference, texts)
        for scheme, source, path in _compressed(options):
            with LLM(path, **settings) as candidate:
                _measure(scheme, source, candidate, reference, texts)


def _compressed(options: argparse.Namespace) -> Iterator[tuple[str, str, Path]]:
    """(scheme, what it was fitted on, directory), neighbours one after the other."""

    settings = {"act_order": True} if options.act_order else {}
    for scheme in options.schemes:
        sources = [("nothing (rtn)", None), *_named(options.calibration), ("its own text", None)]
        for source, path in sources:
            target = options.work / f"{options.model.name}-{scheme}-{source.split()[0]}-{options.rows}"
            if "rtn" in source:
                recipe = make_recipe(scheme, "rtn", group_size=options.group_size)
            else:
                recipe = make_recipe(
                    scheme,
                    "gptq",
                    options=settings,
                    group_size=options.group_size,
                    calibration=None if path is None else str(path),
                    calibration_rows=options.rows,
                )
            compress(options.model, target, recipe, write_text=own_text, overwrite=True)
            yield scheme, source, target


def _measure(scheme: str, source: str, candidate: LLM, reference: LLM, texts: dict[str, Windows]) -> None:
    for name, cut in texts.items():
        loss = compare(candidate, reference, cut, lambda stage, done, total: None)
        kl = loss.kl_mean
        print(
            f"| {scheme} | {source} | {name} ({loss.tokens:,} tokens) | {kl.value:.5f} | {kl.low:.5f} to {kl.high:.5f} "
            f"| {loss.candidate_perplexity.value:.2f} | {loss.reference_perplexity.value:.2f} "
            f"| {loss.top1_agreement.value:.1%} |",
            flush=True,
        )


def spread(llm: LLM, path: Path, windows: int) -> Windows:
    """``windows`` windows at equal distances over the file."""
    text = read_corpus(path)
    step = len(text) // windows
    pieces = [text[place * step : place * step + min(step, CHARACTERS)] for place in range(windows)]
    return document_windows([llm.tokenizer.encode(piece)[:CONTEXT] for piece in pieces], CONTEXT, CONTEXT)


def _named(pairs: list[str]) -> list[tuple[str, Path]]:
    """``web=file.txt`` -> ("web", file)."""
    return [(name, Path(path)) for name, _, path in (pair.partition("=") for pair in pairs)]


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--calibration", nargs="*", default=[], metavar="NAME=FILE")
    parser.add_argument("--foreign", nargs="+", required=True, metavar="NAME=FILE")
    parser.add_argument("--schemes", nargs="+", default=["W4A16-g64", "W3A16-g32"])
    parser.add_argument("--group-size", default="auto")
    parser.add_argument("--rows", type=int, default=16)
    parser.add_argument("--windows", type=int, default=16, help="of 512 tokens, of each foreign text")
    parser.add_argument("--act-order", action="store_true")
    parser.add_argument("--policy", default="exact", choices=["exact", "fast"], help="exact: the loss of the weights")
    parser.add_argument("--work", type=Path, default=Path("scratch/calibration"))
    return parser.parse_args()


if __name__ == "__main__":
    main()
