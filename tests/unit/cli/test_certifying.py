# SPDX-License-Identifier: Apache-2.0
"""A certificate is replaced whole, by a measurement at least as full or of other models, and by nothing less."""

from pathlib import Path

import msgspec
import pytest

from linnet.cli.certifying import store_certificate
from linnet.cli.evaluating import check_report, write_report
from linnet.errors import CheckpointError, UnsupportedError
from linnet.evals.report import CERTIFICATE_FILE, AbilityRecord, Certificate, ModelRecord, Report, TextRecord
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
    ("second", "tokens", "questions", "said"),
    [
        (report(100, 20, created="second"), 100, 20, "stored"),
        (report(200, 30, created="second"), 200, 30, "stored"),
        (report(99, 20, created="second"), 100, 20, "its text part is the earlier, fuller one (100 tokens)"),
        (report(None, 50, created="second"), 100, 50, "its text part is the earlier, fuller one (100 tokens)"),
        (report(200, 2, created="second"), 200, 20, "its abilities are the earlier, fuller ones (20 questions)"),
        (report(200, 0, created="second"), 200, 20, "its abilities are the earlier, fuller ones (20 questions)"),
        (report(99, 2, created="second"), 100, 20, "kept: "),
    ],
)
def test_each_part_keeps_its_fuller_measurement(
    tmp_path: Path, second: Report, tokens: int, questions: int, said: str
) -> None:
    assert "certificate stored" in store_certificate(report(100, 20), tmp_path)
    answer = store_certificate(second, tmp_path)
    assert said in answer
    assert "\n" not in answer
    file = tmp_path / CERTIFICATE_FILE
    found = msgspec.json.decode(file.read_bytes(), type=Certificate)
    assert found.text is not None
    assert (found.text.tokens, sum(ability.questions for ability in found.abilities)) == (tokens, questions)
    mixed = "earlier" in answer
    assert (found.created.startswith("second; ") and found.created.endswith(": first")) == mixed
    assert list(tmp_path.iterdir()) == [file]


@pytest.mark.parametrize("before", ["other models", "damaged"])
def test_a_certificate_that_is_replaced_is_kept_beside(tmp_path: Path, before: str) -> None:
    file = tmp_path / CERTIFICATE_FILE
    if before == "damaged":
        file.write_text("{", encoding="utf-8")
    else:
        store_certificate(report(100, 20, digest="bb"), tmp_path)
    old = file.read_bytes()
    said = store_certificate(report(1, 0), tmp_path)
    assert "is now loss_certificate.before-1.json" in said
    assert (tmp_path / "loss_certificate.before-1.json").read_bytes() == old
    assert msgspec.json.decode(file.read_bytes(), type=Certificate).created == "first"


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


def test_a_report_harms_no_file(tmp_path: Path) -> None:
    model = tmp_path / "model"
    model.mkdir()
    (model / "config.json").write_text("{}")
    (tmp_path / "link").symlink_to(model)
    for name in (model / "config", model / "new", tmp_path / "link" / "deep" / "new"):
        with pytest.raises(CheckpointError, match="lies in the model's directory"):
            check_report(name, [model])
    for suffix in (".json", ".md", ".png"):
        (tmp_path / f"mine{suffix}").write_text("years")
        with pytest.raises(CheckpointError, match="it is kept, give another name"):
            check_report(tmp_path / "mine", [model])
        (tmp_path / f"mine{suffix}").unlink()
    write_report(report(100, 0), tmp_path / "out" / "r")
    check_report(tmp_path / "out" / "r", [model])
    write_report(report(200, 0), tmp_path / "out" / "r")
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["r.json", "r.md", "r.png"]


def test_a_report_without_its_drawing_library_is_refused_before_anything_is_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("linnet.cli.evaluating.find_spec", lambda name: None)
    with pytest.raises(UnsupportedError, match=r"a picture, which needs matplotlib: .* install .*report"):
        check_report(tmp_path / "r", [])
