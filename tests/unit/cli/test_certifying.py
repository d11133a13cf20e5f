# SPDX-License-Identifier: Apache-2.0
"""A certificate is replaced whole, by a measurement at least as full or of other models, and by nothing less."""

from pathlib import Path

import pytest

from linnet.cli.certifying import store_certificate
from linnet.errors import CheckpointError
from linnet.evals.report import CERTIFICATE_FILE, AbilityRecord, ModelRecord, Report, TextRecord
from linnet.evals.statistics import Interval


def report(tokens: int | None, questions: int, digest: str = "aa", created: str = "first") -> Report:
    model = ModelRecord("small", digest, 1, 4.0, {}, "fast", "cpu", {})
    half = Interval(0.5, 0.4, 0.6)
    return Report(
        candidate=model,
        reference=model,
        abilities=(AbilityRecord("recall", questions, half),) if questions else (),
        machine={},
        linnet_version="0",
        created=created,
        text=None if tokens is None else TextRecord("text", "ff", tokens, 64, 32),
    )


@pytest.mark.parametrize(
    ("second", "kept"),
    [
        (report(100, 20, created="second"), False),
        (report(200, 30, created="second"), False),
        (report(99, 20, created="second"), True),
        (report(None, 20, created="second"), True),
        (report(200, 2, created="second"), True),
        (report(200, 0, created="second"), True),
        (report(10, 0, digest="bb", created="second"), False),
    ],
)
def test_a_smaller_measurement_does_not_replace_a_fuller_one(tmp_path: Path, second: Report, kept: bool) -> None:
    assert "certificate stored" in store_certificate(report(100, 20), tmp_path)
    said = store_certificate(second, tmp_path)
    assert said.startswith("certificate kept: " if kept else "certificate stored")
    assert "\n" not in said
    if kept:
        assert "measured on 100 tokens and 20 questions, this time it was" in said
    file = tmp_path / CERTIFICATE_FILE
    assert ('"created": "first"' in file.read_text(encoding="utf-8")) == kept
    assert list(tmp_path.iterdir()) == [file]


def test_a_damaged_certificate_is_replaced(tmp_path: Path) -> None:
    file = tmp_path / CERTIFICATE_FILE
    file.write_text("{", encoding="utf-8")
    store_certificate(report(1, 0), tmp_path)
    assert '"created": "first"' in file.read_text(encoding="utf-8")


def test_a_crash_while_writing_leaves_the_old_certificate(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store_certificate(report(100, 20), tmp_path)
    file = tmp_path / CERTIFICATE_FILE
    before = file.read_bytes()

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(CheckpointError, match="No space left"):
        store_certificate(report(200, 30), tmp_path)
    assert file.read_bytes() == before
    assert list(tmp_path.iterdir()) == [file]
