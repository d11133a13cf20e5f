# SPDX-License-Identifier: Apache-2.0
"""Every report has a picture: with questions or without, alone or against another."""

from pathlib import Path

import msgspec
import pytest
from test_judgement import questions_part, text_part

pytest.importorskip("matplotlib", reason="draws")

from linnet.evals.figure import draw
from linnet.evals.judgement import judge
from linnet.evals.markdown import markdown
from linnet.evals.report import ModelRecord, Report

MODEL = ModelRecord("model-w4", "0" * 64, 90_000_000, 4.5, {"int4": 3}, "fast", "cpu", {})


def planted(text: bool, questions: bool, paired: bool) -> Report:
    record, perplexity, divergence = text_part(0.03, 24)
    abilities, pooled = questions_part(1800, lost=0.03, churn=0.05)
    report = Report(
        MODEL,
        abilities if questions else (),
        {"cpu": "x"},
        "0",
        "2026-01-01",
        text=record if text else None,
        perplexity=perplexity if text else None,
        divergence=divergence if text else None,
        pooled=pooled if questions else None,
        questions="planted" if questions else None,
    )
    if not paired:
        alone = [msgspec.structs.replace(a, reference=None, verdict=None) for a in report.abilities]
        return msgspec.structs.replace(
            report,
            abilities=tuple(alone),
            pooled=pooled and msgspec.structs.replace(pooled, reference=None, verdict=None) if questions else None,
            divergence=None,
            perplexity=perplexity and msgspec.structs.replace(perplexity, reference=None, ratio=None) if text else None,
        )
    judgement = judge(report.text, report.perplexity, report.divergence, report.abilities, report.pooled)
    return msgspec.structs.replace(
        report, reference=msgspec.structs.replace(MODEL, name="model", bytes=270_000_000), judgement=judgement
    )


@pytest.mark.parametrize("paired", [True, False])
@pytest.mark.parametrize(("text", "questions"), [(True, True), (True, False), (False, True)])
def test_every_report_is_drawn_and_said(tmp_path: Path, text: bool, questions: bool, paired: bool) -> None:
    report = planted(text, questions, paired)
    draw(report, tmp_path / "picture.png")
    assert (tmp_path / "picture.png").read_bytes()[:4] == b"\x89PNG"
    said = markdown(report)
    if questions:
        assert "| all | 1,800 |" in said
        assert "detectable" in said
    if paired:
        assert f"**{report.judgement.loss.capitalize()}**" in said
    if not (text and questions) and paired:
        assert "**Warning:**" in said
