# SPDX-License-Identifier: Apache-2.0
"""The Report of one evaluation and the Certificate that travels inside the checkpoint: records and their JSON.

A record names models by directory name and digest, never by path, and carries what is needed to judge a number:
sample counts, intervals, the noise floor, the numerics and the machine.
"""

from pathlib import Path
from typing import Literal

import msgspec

from linnet.errors import CheckpointError
from linnet.evals.statistics import Interval, Verdict

REPORT_VERSION = 1
CERTIFICATE_FILE = "loss_certificate.json"


class ModelRecord(msgspec.Struct, frozen=True):
    """Which bytes were measured, and how they were computed. ``kernels``: name -> number of ops bound to it."""

    name: str
    digest: str
    bytes: int
    bits_per_weight: float
    schemes: dict[str, int]
    numerics: str
    backend: str
    kernels: dict[str, int]


class TextRecord(msgspec.Struct, frozen=True):
    """The text that perplexity and KL were measured on."""

    name: str
    sha256: str
    tokens: int
    context: int
    stride: int
    documents: int = 0
    windows: int = 0
    clusters: Literal["documents", "windows"] = "windows"
    """What the intervals are resampled over."""


class DivergenceRecord(msgspec.Struct, frozen=True):
    """KL(reference || candidate) in nats per token, and how often the likeliest token is the same.

    ``noise_floor`` is KL(reference in exact arithmetic || reference in the arithmetic measured here): a loss below it
    is not distinguishable from a change of rounding.
    """

    mean: Interval
    median: float
    p99: float
    maximum: float
    top1_agreement: Interval
    noise_floor: float | None


class PerplexityRecord(msgspec.Struct, frozen=True):
    """Perplexity of both models and their ratio, paired by window."""

    candidate: Interval
    reference: Interval | None = None
    ratio: Interval | None = None


class AbilityRecord(msgspec.Struct, frozen=True):
    """One ability: accuracies with Wilson intervals; with a reference, the paired test and its verdict."""

    name: str
    questions: int
    candidate: Interval
    reference: Interval | None = None
    lost: int = 0
    gained: int = 0
    p_value: float | None = None
    adjusted_p_value: float | None = None
    minimum_detectable_loss: float | None = None
    """Accuracy loss that would have been found with 80 % power; without a reference, at best. 1.0: none would."""
    verdict: Verdict | None = None
    chance: float = 0.0
    """What guessing gets."""

    @property
    def at_chance(self) -> bool:
        """Whether the candidate's interval reaches down to chance."""
        return self.candidate.low is not None and self.candidate.low <= self.chance


Loss = Literal["nothing worse seen", "undecided", "slightly worse", "worse", "ruined"]


class Judgement(msgspec.Struct, frozen=True):
    """The headline of a comparison: a word, the findings it rests on, and what could not be seen."""

    loss: Loss
    findings: tuple[str, ...]
    warnings: tuple[str, ...] = ()


class Report(msgspec.Struct, frozen=True):
    """Everything one ``linnet eval`` found."""

    candidate: ModelRecord
    abilities: tuple[AbilityRecord, ...]
    machine: dict[str, str]
    linnet_version: str
    created: str
    reference: ModelRecord | None = None
    text: TextRecord | None = None
    perplexity: PerplexityRecord | None = None
    divergence: DivergenceRecord | None = None
    questions: str | None = None
    noise_floor_flips: int | None = None
    noise_floor_questions: int | None = None
    """Questions of which ``noise_floor_flips`` changed sides by rounding alone."""
    pooled: AbilityRecord | None = None
    """All questions together."""
    questions_digest: str | None = None
    questions_left_out: int = 0
    """Questions that did not fit into the models' context."""
    judgement: Judgement | None = None
    format_version: int = REPORT_VERSION


class Certificate(msgspec.Struct, frozen=True):
    """What a compressed checkpoint says about itself: what got worse against which original, and how surely."""

    candidate: ModelRecord
    reference: ModelRecord
    verdicts: dict[str, Literal["worse", "same", "better"]]
    abilities: tuple[AbilityRecord, ...]
    machine: dict[str, str]
    created: str
    linnet_version: str
    perplexity: PerplexityRecord | None = None
    divergence: DivergenceRecord | None = None
    text: TextRecord | None = None
    pooled: AbilityRecord | None = None
    questions: str | None = None
    questions_digest: str | None = None
    judgement: Judgement | None = None
    format_version: int = REPORT_VERSION


def certificate(report: Report) -> Certificate:
    """The part of a report that belongs to the candidate's directory. Needs a reference."""
    if report.reference is None:
        raise ValueError("a certificate says what was lost against a reference; this report has none")
    return Certificate(
        candidate=report.candidate,
        reference=report.reference,
        verdicts={ability.name: ability.verdict for ability in report.abilities if ability.verdict is not None},
        abilities=report.abilities,
        machine=report.machine,
        created=report.created,
        linnet_version=report.linnet_version,
        perplexity=report.perplexity,
        divergence=report.divergence,
        text=report.text,
        pooled=report.pooled,
        questions=report.questions,
        questions_digest=report.questions_digest,
        judgement=report.judgement,
    )


def to_json(record: Report | Certificate) -> bytes:
    """Indented JSON, one trailing newline."""
    return msgspec.json.format(msgspec.json.encode(record), indent=2) + b"\n"


def read_report(path: Path) -> Report:
    """Read a report written by ``to_json``; CheckpointError names the file and what does not fit."""
    try:
        report = msgspec.json.decode(path.read_bytes(), type=Report)
    except (OSError, msgspec.DecodeError) as error:
        raise CheckpointError(f"report {path} cannot be read: {error}") from error
    if report.format_version != REPORT_VERSION:
        raise CheckpointError(f"report {path} has format version {report.format_version}; read: {REPORT_VERSION}")
    return report
