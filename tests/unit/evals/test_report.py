# SPDX-License-Identifier: Apache-2.0
"""What a report says about a model: bytes, schemes and kernels as they are; what of it travels in the certificate."""

import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from tiny_llama import write_tiny_llama

pytest.importorskip("torch", reason="runs on the reference backend")

from linnet import evals
from linnet.api import LLM
from linnet.errors import ConfigError
from linnet.evals.report import Report
from linnet.formats import Checkpoint, CheckpointWriter
from linnet.schemes import parse_scheme, quantize_weight


def packed_and_tied(directory: Path, target: Path) -> Path:
    """The tiny model with a tied, packed embedding and one packed linear."""
    write_tiny_llama(directory)
    with Checkpoint.open(directory) as source, CheckpointWriter(target) as writer:
        for name in source.names():
            module = name.removesuffix(".weight")
            if module in ("model.embed_tokens", "model.layers.0.mlp.up_proj"):
                scheme = parse_scheme("W8A16" if "embed" in module else "W4A16-g32").linear
                writer.add_packed(module, quantize_weight(np.array(source.tensor(name)), scheme))
            elif module != "lm_head":
                writer.add(name, source.tensor(name))
        for file in ("tokenizer.json", "tokenizer_config.json"):
            writer.copy_file(directory / file)
        writer.publish(source.config | {"tie_word_embeddings": True})
    return target


def test_model_record_and_certificate(tmp_path: Path) -> None:
    path = packed_and_tied(tmp_path / "dense", tmp_path / "packed")
    with LLM(path, policy="exact", backend="reference", max_sequences=1) as llm:
        record = evals.model_record(llm)
        assert record.schemes == {"dense": 13, "int4 group 32": 1, "int8 channel": 1}, "a tied head is its embedding"
        assert record.kernels == dict(Counter(llm.executable.choices.values()))
        assert sum(record.kernels.values()) == len(llm.executable.program.ops)
        machine = llm.machine()
    report = Report(record, (), machine, "0", "2026-01-01", reference=record)
    assert evals.read_report(_written(tmp_path / "report.json", report)) == report
    certificate = json.loads(evals.to_json(evals.certificate(report)))
    assert certificate["candidate"]["digest"] == record.digest
    assert certificate["candidate"]["numerics"] == record.numerics
    assert certificate["candidate"]["kernels"] == record.kernels
    assert certificate["machine"] == machine


def test_windows_fit_into_the_shorter_of_two_contexts(tmp_path: Path) -> None:
    """The second model may get less memory for its cache than the first. The reference's KV cache is its policy's own,
    whatever its checkpoint prescribes; only the candidate's is asked for or left to its checkpoint."""
    asked: list[tuple[str, str, str]] = []
    candidate, reference = (write_tiny_llama(tmp_path / name) for name in ("candidate", "reference"))

    def open_model(path: Path, policy: str, kv_cache: str = "auto") -> LLM:
        asked.append((path.name, policy, kv_cache))
        length = 24 if path == reference else 48
        return LLM(path, policy="exact", backend="reference", max_model_len=length, max_sequences=2, token_budget=32)

    def evaluate(context: int | None) -> evals.Report:
        return evals.evaluate(
            candidate,
            reference,
            open_model,
            policy="fast",
            text=evals.EvaluationText("t", ("the cat in the hat. " * 4,)),
            questions=None,
            context=context,
            max_tokens=40,
            created="2026-01-01",
            progress=lambda *_: None,
        )

    report = evaluate(None)
    assert report.text is not None
    assert (report.text.context, report.text.tokens) == (24, 40)
    assert report.divergence is not None
    assert report.divergence.maximum == 0
    assert asked == [("candidate", "fast", "auto"), ("reference", "fast", "bf16"), ("reference", "exact", "fp32")]
    with pytest.raises(ConfigError, match="context is 48; accepted is at most 24 tokens here"):
        evaluate(48)  # what was asked for is not quietly made less


def _written(path: Path, report: Report) -> Path:
    path.write_bytes(evals.to_json(report))
    return path
