# SPDX-License-Identifier: Apache-2.0
"""One evaluation from start to end: open models, read text in lockstep, put questions, test in pairs, report.

Order of side effects: models are opened (mapped, verified) first, so that a damaged checkpoint fails before work
starts; nothing is written here: the caller publishes the Report.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import msgspec
import numpy as np

import linnet
from linnet.api import LLM
from linnet.errors import ConfigError
from linnet.evals.abilities import Answers, Progress, answer, fitting
from linnet.evals.judgement import judge
from linnet.evals.power import detectable_loss
from linnet.evals.questions import QuestionSet, subset
from linnet.evals.report import AbilityRecord, DivergenceRecord, ModelRecord, PerplexityRecord, Report, TextRecord
from linnet.evals.statistics import SIGNIFICANCE, Interval, holm, paired_test, verdict, wilson_interval
from linnet.evals.text_loss import TextLoss, Windows, compare, perplexity
from linnet.evals.texts import Text
from linnet.program.choose_numerics import OWN_KV, known_policy

NOISE_FLOOR_WINDOWS = 4
NOISE_FLOOR_QUESTIONS = 20
"""An ability: what rounding alone flips is a rate, known well enough from a part of the questions."""
DEFAULT_CONTEXT = 512


@dataclass(frozen=True)
class Baseline:
    """What was found out about a reference once, so that several candidates can be paired with it."""

    answers: Answers | None
    noise_floor: float | None
    noise_floor_flips: int | None
    noise_floor_questions: int | None = None


OpenModel = Callable[..., LLM]
"""(directory, numerics policy, KV cache type: auto if left out) -> an open model; the composition root decides threads,
backend and memory."""


def measure_baseline(
    reference: LLM, exact: LLM, text: Windows | None, questions: QuestionSet | None, progress: Progress
) -> Baseline:
    """Answers of the reference, and how much rounding alone moves it (its exact arithmetic against ``reference``)."""
    floor = None
    if text is not None:
        few = text.first(NOISE_FLOOR_WINDOWS)
        floor = compare(reference, exact, few, progress).kl_mean.value
    answers = flips = asked = None
    if questions is not None:
        answers = answer(reference, questions, progress)
        part = subset(questions, NOISE_FLOOR_QUESTIONS)
        chosen = {question.id for question in part.questions}
        ours = answers.correct[[question.id in chosen for question in questions.questions]]
        flips, asked = int(np.sum(ours != answer(exact, part, progress).correct)), len(part.questions)
    return Baseline(answers, floor, flips, asked)


def evaluate(
    candidate_path: Path,
    reference_path: Path | None,
    open_model: OpenModel,
    *,
    policy: str,
    kv_cache: str = "auto",
    text: Text | None,
    questions: QuestionSet | None,
    context: int | None = None,
    stride: int | None = None,
    max_tokens: int | None,
    created: str,
    progress: Progress,
    baseline: Baseline | None = None,
) -> Report:
    """Measure one checkpoint, alone or against a reference. ``created`` is an ISO 8601 time.

    ``context`` tokens a window (None: 512, or what the models reach), which advances by ``stride`` (None: half of it).

    ``kv_cache`` is the candidate's; the reference's is its policy's own, whatever its checkpoint prescribes.

    Raises ConfigError where the two models do not share a vocabulary, CheckpointError for damaged files.
    """
    if text is None and questions is None:
        raise ConfigError("nothing to measure: give a text, a question set or both")
    with ExitStack() as stack:
        candidate = stack.enter_context(open_model(candidate_path, policy, kv_cache))
        reference = None
        if reference_path is not None:
            reference = stack.enter_context(open_model(reference_path, policy, OWN_KV[known_policy(policy)]))
        if reference is not None:
            _require_same_tokens(candidate, reference)
        left_out = 0
        if questions is not None:
            asked, reach = len(questions.questions), min(llm.max_model_len for llm in (candidate, reference) if llm)
            questions = fitting(candidate, questions, reach)
            left_out = asked - len(questions.questions)
        cut = None
        if text is not None:
            reached = min(llm.max_model_len for llm in (candidate, reference) if llm is not None)
            length = window_length(context, reached)
            cut = text.cut(candidate, length, max(length // 2, 1) if stride is None else stride, max_tokens)
        if reference is not None and reference_path is not None and baseline is None:
            with open_model(reference_path, "exact", OWN_KV["exact"]) as exact:
                baseline = measure_baseline(reference, exact, cut, questions, progress)
        loss = alone = None
        if cut is not None and reference is not None:
            loss = compare(candidate, reference, cut, progress)
        elif cut is not None:
            alone = perplexity(candidate, cut, progress)
        answers = None if questions is None else answer(candidate, questions, progress)
        records: tuple[AbilityRecord, ...] = ()
        pooled = None
        if questions is not None and answers is not None:
            records = ability_records(questions, answers, baseline)
            pooled = pooled_record(questions, answers, baseline)
        text_record = None if text is None or cut is None else _text_record(text, cut)
        perplexities = _perplexity_record(loss, alone)
        divergence = None if loss is None else _divergence_record(loss, baseline)
        judgement = None
        if reference is not None:
            judgement = judge(text_record, perplexities, divergence, records, pooled)
        return Report(
            candidate=model_record(candidate),
            reference=None if reference is None else model_record(reference),
            text=text_record,
            perplexity=perplexities,
            divergence=divergence,
            abilities=records,
            pooled=pooled,
            questions=None if questions is None else questions.name,
            questions_digest=None if questions is None else questions.digest,
            questions_left_out=left_out,
            noise_floor_flips=None if baseline is None else baseline.noise_floor_flips,
            noise_floor_questions=None if baseline is None else baseline.noise_floor_questions,
            judgement=judgement,
            machine=candidate.machine(),
            linnet_version=linnet.__version__,
            created=created,
        )


def window_length(context: int | None, reached: int) -> int:
    """Tokens of a window: what was asked for, else DEFAULT_CONTEXT or all that the models reach.

    ConfigError for more than they reach.
    """
    if context is not None and context > reached:
        raise ConfigError(f"context is {context}; accepted is at most {reached} tokens here", settings=["context"])
    return min(DEFAULT_CONTEXT, reached) if context is None else context


def model_record(llm: LLM) -> ModelRecord:
    """Name, digest, size and numerics of an open model. Bits per weight count every stored byte of every tensor."""
    schemes = Counter(str(name) for name in llm.linear_scheme_names())
    return ModelRecord(
        name=llm.name,
        digest=llm.checkpoint.digest(),
        bytes=llm.checkpoint.nbytes,
        bits_per_weight=8 * llm.checkpoint.nbytes / llm.parameters,
        schemes=dict(sorted(schemes.items())),
        numerics=llm.numerics_id,
        backend=llm.backend_name,
        kernels=llm.kernels(),
    )


def ability_records(questions: QuestionSet, answers: Answers, baseline: Baseline | None) -> tuple[AbilityRecord, ...]:
    """One record an ability; paired with the baseline's answers where there are any, Holm-adjusted over all."""
    abilities = np.array([question.ability for question in questions.questions])
    count = len(questions.abilities)
    records = [
        _ability_record(name, questions, answers, baseline, abilities == name, tests=count)
        for name in questions.abilities
    ]
    if any(record.p_value is None for record in records):
        return tuple(records)
    adjusted = holm([record.p_value for record in records if record.p_value is not None])
    return tuple(_decided(record, p_value) for record, p_value in zip(records, adjusted, strict=True))


def pooled_record(questions: QuestionSet, answers: Answers, baseline: Baseline | None) -> AbilityRecord:
    """All questions together: one test, which sees a small loss that is spread over the abilities."""
    everything = np.ones(len(questions.questions), dtype=bool)
    record = _ability_record("all", questions, answers, baseline, everything, tests=1)
    return record if record.p_value is None else _decided(record, record.p_value)


def _ability_record(
    name: str, questions: QuestionSet, answers: Answers, baseline: Baseline | None, chosen: np.ndarray, tests: int
) -> AbilityRecord:
    """The chosen questions, not yet decided: that needs the p values of all abilities."""
    ours, count = answers.correct[chosen], int(np.sum(chosen))
    chance = float(np.mean([question.chance for question in questions.questions], where=chosen))
    if baseline is None or baseline.answers is None:
        best = detectable_loss(count, 0, SIGNIFICANCE / tests)
        return AbilityRecord(name, count, _accuracy(ours), minimum_detectable_loss=best, chance=chance)
    theirs = baseline.answers.correct[chosen]
    test = paired_test(theirs, ours, tests=tests)
    return AbilityRecord(
        name=name,
        questions=count,
        candidate=_accuracy(ours),
        reference=_accuracy(theirs),
        lost=test.lost,
        gained=test.gained,
        p_value=test.p_value,
        minimum_detectable_loss=test.minimum_detectable_loss,
        chance=chance,
    )


def _decided(record: AbilityRecord, adjusted_p_value: float) -> AbilityRecord:
    word = verdict(record.gained - record.lost, adjusted_p_value)
    return msgspec.structs.replace(record, adjusted_p_value=adjusted_p_value, verdict=word)


def _accuracy(correct: np.ndarray) -> Interval:
    return wilson_interval(int(np.sum(correct)), len(correct))


def _text_record(text: Text, cut: Windows) -> TextRecord:
    clusters: Literal["documents", "windows"] = "documents" if cut.enough_documents else "windows"
    return TextRecord(
        text.name, text.sha256, cut.scored_tokens, cut.context, cut.stride, cut.document_count, len(cut.rows), clusters
    )


def _perplexity_record(loss: TextLoss | None, alone: Interval | None) -> PerplexityRecord | None:
    if loss is not None:
        return PerplexityRecord(loss.candidate_perplexity, loss.reference_perplexity, loss.perplexity_ratio)
    return None if alone is None else PerplexityRecord(alone)


def _divergence_record(loss: TextLoss, baseline: Baseline | None) -> DivergenceRecord:
    floor = None if baseline is None else baseline.noise_floor
    return DivergenceRecord(loss.kl_mean, loss.kl_median, loss.kl_p99, loss.kl_max, loss.top1_agreement, floor)


def _require_same_tokens(candidate: LLM, reference: LLM) -> None:
    """KL and paired answers mean nothing when the same text becomes other tokens."""
    probe = "The quick brown fox jumps over 13 lazy dogs.\n"
    ours, theirs = candidate.tokenizer, reference.tokenizer
    sizes: Sequence[int] = (candidate.vocabulary_size, reference.vocabulary_size)
    if sizes[0] != sizes[1] or ours.encode(probe) != theirs.encode(probe):
        raise ConfigError(
            f"{candidate.name} and {reference.name} do not share a tokeniser (vocabularies of {sizes[0]} and {sizes[1]}"
            " tokens); a loss can only be measured between models that read the same tokens"
        )
