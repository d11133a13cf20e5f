# SPDX-License-Identifier: Apache-2.0
"""Who is compared with whom: engines, the files they read, and the pairings of one full run. Data only."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Contender:
    """One engine with one kind of weights. ``environment`` None: the project's own."""

    name: str
    adapter: str
    weights: str
    precision: str
    """int4, int8 or bf16: which column of the targets it belongs to."""
    environment: str | None = None
    settings: dict[str, Any] = field(default_factory=dict)

    @property
    def is_linnet(self) -> bool:
        """Ours."""
        return self.adapter == "linnet"


def _linnet(scheme: str, precision: str) -> Contender:
    return Contender(f"linnet {scheme}", "linnet", scheme, precision)


def _llama(file: str, precision: str) -> Contender:
    return Contender(f"llama.cpp {file}", "llama", f"gguf-{file}", precision, "llama_cpp")


LINNET = {
    contender.weights: contender
    for contender in (
        _linnet("W4A16-head8", "int4"),
        _linnet("W4A16-head4", "int4"),
        _linnet("W4A16-g32-head8", "int4"),
        _linnet("W8A8-head8", "int8"),
        _linnet("W8A16-head8", "int8"),
        _linnet("bf16", "bf16"),
    )
}
PEERS = {
    contender.name: contender
    for contender in (
        _llama("Q4_0", "int4"),
        _llama("Q4_K_M", "int4"),
        _llama("Q8_0", "int8"),
        _llama("BF16", "bf16"),
        Contender("openvino int4", "openvino", "openvino-int4", "int4", "openvino"),
        Contender("openvino int8", "openvino", "openvino-int8", "int8", "openvino"),
        Contender("vllm W8A8", "vllm", "W8A8", "int8", "vllm"),
        Contender("vllm W8A8 eager", "vllm", "W8A8", "int8", "vllm", {"eager": True}),
        Contender("vllm bf16", "vllm", "bf16", "bf16", "vllm"),
        Contender("onnxruntime int4", "onnxruntime", "onnxruntime-int4", "int4", "onnxruntime"),
        Contender("ctranslate2 int8", "ctranslate2", "ctranslate2-int8", "int8", "ctranslate2"),
        Contender("transformers bf16", "transformers", "bf16", "bf16"),
    )
}
PAIRINGS: tuple[tuple[str, str], ...] = (
    # int4 against every 4-bit peer, and against the strongest of any precision in prefill and batches
    ("W4A16-head8", "llama.cpp Q4_0"),
    ("W4A16-head8", "llama.cpp Q4_K_M"),
    ("W4A16-head8", "openvino int4"),
    ("W4A16-head8", "vllm W8A8"),
    ("W4A16-head8", "openvino int8"),
    ("W4A16-head8", "onnxruntime int4"),
    ("W4A16-head8", "ctranslate2 int8"),
    ("W8A8-head8", "vllm W8A8"),
    ("W8A8-head8", "openvino int8"),
    ("W8A8-head8", "ctranslate2 int8"),
    ("W8A16-head8", "llama.cpp Q8_0"),
    ("W8A16-head8", "openvino int8"),
    ("bf16", "llama.cpp BF16"),
    ("bf16", "vllm bf16"),
    ("bf16", "transformers bf16"),
)
"""(Linnet's weights, peer): the ones a full run takes. Any other pair can be asked for by name."""


def pairing(text: str) -> tuple[Contender, Contender]:
    """``W4A16-head8:llama.cpp Q4_0`` -> the two. ValueError lists what is known."""
    ours, separator, theirs = text.partition(":")
    if not separator or ours not in LINNET or theirs not in PEERS:
        raise ValueError(f"{text!r} is not OURS:THEIRS; ours: {', '.join(LINNET)}; theirs: {', '.join(PEERS)}")
    return LINNET[ours], PEERS[theirs]


@dataclass(frozen=True)
class Places:
    """Where models and environments lie."""

    work: Path
    cache: Path
    shape: str

    @property
    def dense(self) -> Path:
        """The bf16 checkpoint everything is made from."""
        return self.work / self.shape

    def model(self, contender: Contender) -> Path:
        """The file or directory the contender opens."""
        if contender.weights == "bf16":
            return self.dense
        if contender.is_linnet:
            return self.work / f"{self.shape}-{contender.weights}"
        suffix = ".gguf" if contender.weights.startswith("gguf-") else ""
        return self.cache / "models" / f"{self.shape}-{contender.weights.removeprefix('gguf-')}{suffix}"

    def python(self, contender: Contender, own: str) -> str:
        """The interpreter that runs it."""
        return own if contender.environment is None else str(self.cache / contender.environment / "bin" / "python")

    def missing(self, contender: Contender) -> str | None:
        """None, or one sentence saying why the contender cannot run."""
        if contender.environment is None:
            return None
        if not (self.cache / contender.environment / "installed.stamp").exists():
            return f"{contender.name}: not installed; `python bench/peers/install.py` says why"
        return None
