# SPDX-License-Identifier: Apache-2.0
"""``linnet convert`` as typed: what it prints, what it refuses, what lies there afterwards."""

import re
from pathlib import Path

import pytest
from test_command_line import linnet

import linnet as package
from linnet.formats import Checkpoint
from linnet.formats.convert import numbers_hash

DEMO = Path(package.__file__).parent / "demo" / "model"


def test_to_gguf_and_back(tmp_path: Path) -> None:
    target, again = tmp_path / "model.gguf", tmp_path / "again"
    there = linnet("convert", str(DEMO), str(target), "--to", "gguf:BF16", "--exact")
    assert there.returncode == 0, there.stderr
    assert "no number changes" in " ".join(there.stderr.split())
    digest = re.search(r"read again: the same numbers, SHA-256 ([0-9a-f]{64})", " ".join(there.stdout.split()))
    assert digest is not None
    with Checkpoint.open(DEMO) as source:
        assert digest[1] == numbers_hash(source)
    back = linnet("convert", str(target), str(again), "--to", "dense")
    assert back.returncode == 0, back.stderr
    assert digest[1] in back.stdout
    assert {path.name for path in again.iterdir()} >= {"config.json", "model.safetensors", "tokenizer.json"}
    texts = [
        linnet("generate", str(path), "Once upon a time", "--max-tokens", "20").stdout for path in (DEMO, target, again)
    ]
    assert texts[0] == texts[1] == texts[2] != ""


def test_what_is_lost_is_said(tmp_path: Path) -> None:
    made = linnet("convert", str(DEMO), str(tmp_path / "model.gguf"), "--to", "gguf:Q4_K")
    assert made.returncode == 0, made.stderr
    said = " ".join(made.stderr.split())
    assert re.search(r"7.94 MB → 2.48 MB: Q4_K 66.1 %, .* the weights change by 5\.\d+ % \(root mean square", said)


@pytest.mark.parametrize("form", ["gptq", "awq", "bitsandbytes", "fp8", "mxfp4"])
def test_what_is_written_for_others_answers_here(form: str, tmp_path: Path) -> None:
    target, again = tmp_path / form, tmp_path / "again"
    made = linnet("convert", str(DEMO), str(target), "--to", form)
    assert made.returncode == 0, made.stderr
    assert re.search(r"the weights change by \d", " ".join(made.stderr.split()))
    exact = linnet("convert", str(target), str(again), "--to", form, "--exact")
    assert exact.returncode == 0, exact.stderr
    assert "read again: the same numbers, SHA-256" in " ".join(exact.stdout.split())
    assert (target / "model.safetensors").read_bytes() == (again / "model.safetensors").read_bytes()
    text = linnet("generate", str(target), "Once upon a time", "--max-tokens", "20")
    assert text.returncode == 0, text.stderr
    assert text.stdout.strip()


@pytest.mark.parametrize(
    ("arguments", "status", "message"),
    [
        (
            ("--to", "gguf:Q4_0", "--exact"),
            4,
            "model.embed_tokens.weight (bf16) would lose something; nothing was written",
        ),
        (("--to", "onnx"), 2, "nothing is converted to 'onnx'; accepted: gguf:TYPE"),
        (("--to", "gguf:Q4_0", "--imatrix", "nothing.gguf"), 3, "nothing.gguf: cannot be opened"),
        (("--to", "gptq", "--imatrix", "nothing.gguf"), 2, "--imatrix goes with --to gguf:TYPE, not with gptq"),
        (("--to", "gptq:W4A8"), 2, "'W4A8' is nothing that gptq is written in; accepted: gptq:W2A16"),
        (("--to", "fp8:128"), 2, "fp8 takes no type, not '128': it is written as e4m3 in blocks of 128 x 128"),
        (("--to", "awq", "--exact"), 4, "awq: rounding to int4 changes its numbers"),
        (("--to", "gptq:W4A16-g96"), 4, "gptq cannot hold 35 of the model's linears"),
        ((), 2, "--to"),
    ],
)
def test_refusals_leave_nothing(arguments: tuple[str, ...], status: int, message: str, tmp_path: Path) -> None:
    result = linnet("convert", str(DEMO), str(tmp_path / "model.gguf"), *arguments)
    assert result.returncode == status, result.stderr
    assert message in " ".join(result.stderr.split())
    assert "Traceback" not in result.stderr
    assert list(tmp_path.iterdir()) == []
