# SPDX-License-Identifier: Apache-2.0
"""Recall by position: does a model still find what stood at the beginning, in the middle, at the end of a long prompt?

    python bench/recall.py MODEL --places 5 --also W8A8KV8_DIRECTORY

The questions are those of the ability "recall" (the bundled world's, or the general ones): some thirty facts, then a
question about one of them. That one's sentence is moved to each of --places relative positions, from the first fact (0)
to the last (1); everything else stays, a heading too. The model is asked with every element of the KV cache, weights
untouched, and so is every directory of --also, as it prescribes. Each reads in lockstep with the original, whose cache
is plain, so that all differences are paired: they are made over questions, with a 95 % interval (evals.statistics).
"""

import argparse
import re
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from kv import ELEMENTS, cache_settings, prescribing
from linnet import demo, evals
from linnet.api import LLM
from linnet.evals.statistics import Interval, mean_interval
from linnet.schemes.elements import ElementName


@dataclass(frozen=True)
class Fact:
    """A prompt in parts: sentences + ``after`` + answer; ``asked``: the sentence that has the answer; ``first``: the
    first that may be asked about, whose second word is the same."""

    sentences: tuple[str, ...]
    asked: int
    first: int
    after: str
    answer: str

    def at(self, place: float) -> str:
        """The prompt with the asked fact at a relative position, 0 to 1, among the others."""
        others = [each for number, each in enumerate(self.sentences) if number != self.asked]
        index = self.first + round(place * (len(others) - self.first))
        return " ".join([*others[:index], self.sentences[self.asked], *others[index:]]) + self.after


def main() -> None:
    """Print one table: a row a position, a column a cache."""
    options = _arguments()
    facts = list(_facts(options))[: options.questions]
    places = np.linspace(0, 1, options.places).tolist()
    settings = cache_settings(options.context)
    candidates = {name: ELEMENTS[name] for name in options.elements} | {path.name: path for path in options.also}
    with LLM(options.model, **settings) as reference:
        tokens = np.mean([len(row) for row in _rows(reference, facts, places)[0]])
        print(f"{len(facts)} questions, {tokens:.0f} tokens each on average")
        print(f"| position | original | {' | '.join(candidates)} |\n|---|---|{'---|' * len(candidates)}")
        pairs = [measured(reference, options.model, what, facts, places, settings) for what in candidates.values()]
    for number, place in enumerate([*places, None]):
        mine = slice(None) if place is None else slice(number, None, len(places))
        cells = [f"{pairs[0][1][mine][:, 1].mean():.1%}"] + [_cell(ours[mine], theirs[mine]) for ours, theirs in pairs]
        print(f"| {'all' if place is None else f'{place:.2f}'} | {' | '.join(cells)} |")


def measured(
    reference: LLM,
    model: Path,
    what: ElementName | Path,
    facts: Sequence[Fact],
    places: Sequence[float],
    settings: Mapping[str, Any],
) -> tuple[np.ndarray, np.ndarray]:
    """(with this cache, or of this compressed directory; of the original): [facts x places, 2], the places of a fact
    behind one another: the answer's log-probability, and whether every token of it is the likeliest."""
    rows, starts = _rows(reference, facts, places)
    with _candidate(model, what, settings) as candidate:
        heard = candidate.compare(reference, rows, starts=starts)
    answers = [row[start:] for row, start in zip(rows, starts, strict=True)]
    ours = _table([each.logprobs for each in heard], [each.greedy for each in heard], answers)
    theirs = _table([each.reference_logprobs for each in heard], [each.reference_greedy for each in heard], answers)
    return ours, theirs


def _facts(options: argparse.Namespace) -> Iterator[Fact]:
    """Questions about one sentence of several, which shares a name with the question and holds the answer."""
    theirs = options.model / "tokenizer.json"
    own = theirs.exists() and theirs.read_bytes() == (demo.model_directory() / "tokenizer.json").read_bytes()
    questions = evals.read_questions(demo.questions_file()) if own else evals.general_questions()
    for question in questions.questions:
        prompt, choices = question.prompt or "", question.choices or ()
        answer = choices[question.answer] if isinstance(question.answer, int) else f" {question.answer}"
        if question.ability != "recall" or "\nQuestion: " not in prompt:
            continue
        text, after = prompt.split("\n", 1)
        sentences = tuple(sentence.strip() for sentence in re.findall(r"[^.]+\.", text))
        names = set(re.findall(r"[A-Z][a-z]+", after)) - {"Question", "Answer", "What", "Which", "Who", "How", "Where"}
        words = {answer.strip(), *names} if names else {answer.strip(), *after.split("\n")[0].rstrip("?").split()[-2:]}
        asked = [number for number, each in enumerate(sentences) if words <= set(re.findall(r"\w+", each))]
        if len(asked) == 1 and len(sentences) >= options.facts:
            verbs = [sentence.split()[1] for sentence in sentences]
            yield Fact(sentences, asked[0], verbs.index(verbs[asked[0]]), "\n" + after, answer)


def _rows(llm: LLM, facts: Sequence[Fact], places: Sequence[float]) -> tuple[list[list[int]], list[int]]:
    """Question after question at every place: token ids, and where the answer begins."""
    rows, starts = [], []
    for fact in facts:
        for place in places:
            prompt = llm.tokenizer.encode(fact.at(place))
            whole = llm.tokenizer.encode(fact.at(place) + fact.answer)
            start = next((at for at, pair in enumerate(zip(prompt, whole, strict=False)) if pair[0] != pair[1]), None)
            rows.append(whole)
            starts.append(len(prompt) if start is None else start)
    return rows, starts


def _table(
    logprobs: Sequence[np.ndarray], greedy: Sequence[np.ndarray], answers: Sequence[Sequence[int]]
) -> np.ndarray:
    right = [float(np.array_equal(tokens, answer)) for tokens, answer in zip(greedy, answers, strict=True)]
    return np.array([[float(np.sum(each)) for each in logprobs], right]).T


def _cell(ours: np.ndarray, theirs: np.ndarray) -> str:
    """Share of right answers, and how much less likely the answer became."""
    lost: Interval = mean_interval([each[None] for each in theirs[:, 0] - ours[:, 0]])
    return f"{ours[:, 1].mean():.1%}, {lost.value:.5f} [{lost.low:.5f}, {lost.high:.5f}]"


@contextmanager
def _candidate(model: Path, path: Any, settings: dict[str, Any]) -> Iterator[LLM]:
    if isinstance(path, Path):
        with LLM(path, **settings) as candidate:
            yield candidate
        return
    with (
        tempfile.TemporaryDirectory() as place,
        LLM(prescribing(model, Path(place), path, ()), **settings) as candidate,
    ):
        yield candidate


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--also", type=Path, nargs="*", default=[], help="compressed directories of the same model")
    parser.add_argument("--elements", nargs="*", choices=ELEMENTS, default=list(ELEMENTS), help="of the KV cache")
    parser.add_argument("--places", type=int, default=5)
    parser.add_argument("--questions", type=int, default=60)
    parser.add_argument("--facts", type=int, default=12, help="sentences that a prompt has at least")
    parser.add_argument("--context", type=int, default=1024, help="as long as the longest prompt, at least")
    return parser.parse_args()


if __name__ == "__main__":
    main()
