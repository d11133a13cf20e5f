# SPDX-License-Identifier: Apache-2.0
"""What 4 bits cost on trained weights: Linnet's schemes beside llama.cpp's, both as they run, on the same text.

    python bench/peers/quality.py MODEL --text FILE [--calibration FILE] [--tokens 16384] [--out out/quality]

MODEL: a trained dense checkpoint (Llama or Qwen2). All candidates are made from it; every one reads the same windows of
512 tokens, and its distribution at every position is compared with the unquantised model's in fp32 (transformers): KL
in nats per token and perplexity, with 95 % bootstrap intervals over windows. The noise floor is the unquantised model
run by each engine. Bytes are those of all tensors as stored. For every file of llama.cpp the table of pairs names
Linnet's schemes of equal or fewer bytes with the ratio of the losses.
"""

import argparse
import json
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

BENCH = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(BENCH))

from linnet.api import LLM  # noqa: E402
from linnet.backends.interface import Batch  # noqa: E402
from linnet.errors import LinnetError  # noqa: E402
from linnet.evals.statistics import Interval, bootstrap_interval  # noqa: E402
from linnet.formats import Checkpoint  # noqa: E402
from linnet.text import Tokenizer  # noqa: E402
from linnet.text.files import read_corpus  # noqa: E402
from samples import markdown, significant  # noqa: E402

WINDOW = 512
SCHEMES = tuple(
    f"W4A16-{form}"
    for form in ("g128-head8", "g64-head8", "g32-head8", "g16-head8", "g64-asym-head8", "g32-asym-head8", "g32-head4")
)
EQUAL = 1.005
"""Bytes within half a per cent are equal: formats come in steps, and the table shows the quotient."""

ALGORITHMS = ("rtn", "gptq")
FILES = ("Q4_0", "Q4_K_M", "Q8_0")


@dataclass(frozen=True)
class Loss:
    """One candidate: sums of KL and of negative log-likelihood per window, over ``WINDOW - 1`` scored tokens each."""

    name: str
    nbytes: int
    kl: np.ndarray
    nll: np.ndarray
    note: str = ""

    def mean_kl(self) -> Interval:
        """Nats per token."""
        return per_token(self.kl)

    def perplexity(self) -> Interval:
        """Of the text's own tokens."""
        found = per_token(self.nll)
        low, high = (None if bound is None else float(np.exp(bound)) for bound in (found.low, found.high))
        return Interval(float(np.exp(found.value)), low, high)


def per_token(sums: np.ndarray) -> Interval:
    """Mean per token of per-window sums, with its interval."""
    clusters = [np.array([value, WINDOW - 1]) for value in sums]
    return bootstrap_interval(clusters, lambda total: total[..., 0] / total[..., 1])


def loss_ratio(ours: Loss, theirs: Loss) -> Interval:
    """Our mean KL over theirs, windows resampled together: below 1 we lose less."""
    clusters = [np.array(pair) for pair in zip(ours.kl, theirs.kl, strict=True)]
    return bootstrap_interval(clusters, lambda total: total[..., 0] / total[..., 1])


def log_softmax(logits: np.ndarray) -> np.ndarray:
    """In fp64, over the last axis."""
    wide = logits.astype(np.float64)
    wide -= wide.max(axis=-1, keepdims=True)
    return wide - np.log(np.exp(wide).sum(axis=-1, keepdims=True))


def window_loss(reference: np.ndarray, logits: np.ndarray, ids: np.ndarray) -> tuple[float, float]:
    """(sum of KL(reference || candidate), sum of negative log-likelihood) over the positions with a next token.

    ``reference``: log-probabilities [tokens, vocabulary]; ``logits``: the candidate's, not normalised.
    """
    found, known = log_softmax(logits[:-1]), reference[:-1]
    kl = (np.exp(known) * (known - found)).sum()
    return float(kl), float(-found[np.arange(len(ids) - 1), ids[1:]].sum())


def windows(model: Path, text: Path, tokens: int) -> np.ndarray:
    """The text's first ids as rows of WINDOW."""
    ids = Tokenizer.open(model).encode(read_corpus(text)[: 16 * tokens])
    count = min(len(ids), tokens) // WINDOW
    if count < 2:
        raise ValueError(f"{text}: {len(ids)} tokens; at least two windows of {WINDOW} are needed")
    return np.array(ids[: count * WINDOW], np.int32).reshape(count, WINDOW)


def reference_logits(model: Path, rows: np.ndarray) -> Iterator[np.ndarray]:
    """transformers in fp32."""
    import torch
    from transformers import AutoModelForCausalLM

    network = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32).eval()
    with torch.inference_mode():
        for row in rows:
            yield network(torch.from_numpy(row[None].astype(np.int64))).logits[0].numpy()


def linnet_logits(directory: Path, rows: np.ndarray) -> Iterator[np.ndarray]:
    """Linnet as it serves (policy fast), a window a step."""
    with LLM(directory, max_sequences=1, token_budget=WINDOW, max_model_len=WINDOW) as llm:
        block = llm.facts.scheduling.block_size
        tables = np.arange(WINDOW // block, dtype=np.int32)[None]
        positions = np.arange(WINDOW, dtype=np.int32)
        states = llm.executable.allocate_states(WINDOW // block)
        for row in rows:
            batch = Batch(
                token_ids=row,
                positions=positions,
                kv_slots=positions,
                query_start=np.array([0, WINDOW], np.int32),
                context_lengths=np.array([WINDOW], np.int32),
                block_tables=tables,
                output_rows=positions,
            )
            llm.executable.execute(batch, states)
            yield llm.executable.logits()


def llama_logits(python: Path, file: Path, rows: np.ndarray, work: Path) -> Iterator[np.ndarray]:
    """llama.cpp in its own environment; the logits come back through a file."""
    np.save(work / "rows.npy", rows)
    script = BENCH / "peers" / "llama_logits.py"
    command = [str(python), str(script), str(file), str(work / "rows.npy"), str(work / "logits.npy")]
    subprocess.run(command, check=True, stderr=subprocess.DEVNULL)
    found = np.load(work / "logits.npy", mmap_mode="r")
    yield from found
    (work / "logits.npy").unlink()


def measure(
    name: str, nbytes: int, logits: Iterator[np.ndarray], reference: np.ndarray, rows: np.ndarray, note: str = ""
) -> Loss:
    """One candidate over all windows."""
    sums = [window_loss(known, found, row) for known, found, row in zip(reference, logits, rows, strict=True)]
    kl, nll = (np.array(column) for column in zip(*sums, strict=True))
    return Loss(name, nbytes, kl, nll, note)


def compress(model: Path, work: Path, scheme: str, algorithm: str, calibration: Path | None) -> Path:
    """A compressed checkpoint, kept for the next run. LinnetError's sentence where the scheme does not fit."""
    on = calibration.name.partition(".")[0] if calibration is not None and algorithm != "rtn" else ""
    target = work / f"{model.name}-{scheme}-{algorithm}{on and '-' + on}"
    if not target.exists():
        command = [sys.executable, "-m", "linnet.cli.main", "compress", str(model), "-o", str(target)]
        command += ["--scheme", scheme, "--algorithm", algorithm]
        if algorithm != "rtn" and calibration is not None:
            command += ["--calibration", str(calibration)]
        done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        if done.returncode:
            raise LinnetError(done.stdout.strip().splitlines()[-1])
    return target


def tensor_bytes(directory: Path) -> int:
    """Of a safetensors checkpoint: every tensor as stored, headers left out."""
    with Checkpoint.open(directory, verify=False) as checkpoint:
        return checkpoint.nbytes


def gguf_record(python: Path, file: Path) -> tuple[int, str]:
    """Bytes of all tensors, and which types the matrices got."""
    code = (
        "import gguf, json, sys; r = gguf.GGUFReader(sys.argv[1]); "
        "print(json.dumps([[t.name, t.tensor_type.name, int(t.n_bytes), len(t.shape)] for t in r.tensors]))"
    )
    done = subprocess.run([str(python), "-c", code, str(file)], check=True, capture_output=True, text=True)
    tensors = json.loads(done.stdout)
    kinds = Counter(kind for _, kind, _, rank in tensors if rank > 1)
    return sum(entry[2] for entry in tensors), ", ".join(f"{count} {kind}" for kind, count in kinds.most_common())


def table(losses: list[Loss]) -> str:
    """All candidates, smallest first."""
    rows = [
        [one.name, f"{one.nbytes:,}", interval(one.mean_kl()), interval(one.perplexity(), 4), one.note]
        for one in sorted(losses, key=lambda one: one.nbytes)
    ]
    return markdown(("candidate", "bytes", "mean KL, nats", "perplexity", "note"), rows)


def pairs(losses: list[Loss]) -> str:
    """For every llama.cpp file: Linnet's candidates of equal or fewer bytes, by mean KL (below 1: we lose less)."""
    rows = []
    for theirs in (one for one in losses if one.name.startswith("llama.cpp Q")):
        fitting = [one for one in losses if one.name.startswith("linnet W") and one.nbytes <= EQUAL * theirs.nbytes]
        rows += [
            [theirs.name, ours.name, f"{ours.nbytes / theirs.nbytes:.3f}", interval(loss_ratio(ours, theirs))]
            for ours in sorted(fitting, key=lambda one: float(one.kl.sum()))
        ]
    return markdown(("peer", "Linnet, not larger", "bytes, times", "KL, times [95 %]"), rows)


def interval(found: Interval, digits: int = 3) -> str:
    """``0.0052 [0.0048, 0.0057]``."""
    if found.low is None or found.high is None:
        return significant(found.value, digits)
    return f"{significant(found.value, digits)} [{significant(found.low, digits)}, {significant(found.high, digits)}]"


def main() -> None:
    """Make the candidates, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--text", type=Path, required=True, help="UTF-8 text (.xz too) that nothing was calibrated on")
    parser.add_argument("--calibration", type=Path, help="text for gptq; default: the bundled one")
    parser.add_argument("--schemes", default=",".join(SCHEMES), help="of Linnet, comma-separated")
    parser.add_argument("--tokens", type=int, default=16384)
    parser.add_argument("--cache", type=Path, default=Path("scratch/peers"))
    parser.add_argument("--out", type=Path, default=Path("out/quality"))
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    rows = windows(options.model, options.text, options.tokens)
    print(f"{len(rows)} windows of {WINDOW} tokens", flush=True)
    reference = np.stack([log_softmax(logits).astype(np.float32) for logits in reference_logits(options.model, rows)])
    losses = []

    def add(loss: Loss) -> None:
        losses.append(loss)
        print(f"{loss.name}: {loss.nbytes:,} bytes, KL {interval(loss.mean_kl())}", flush=True)

    zero = np.zeros(len(rows))
    nll = np.array([-known[np.arange(WINDOW - 1), row[1:]].sum() for known, row in zip(reference, rows, strict=True)])
    add(Loss("transformers fp32", tensor_bytes(options.model), zero, nll, "the reference"))
    dense = linnet_logits(options.model, rows)
    add(measure("linnet bf16", tensor_bytes(options.model), dense, reference, rows, "noise floor"))
    for scheme in options.schemes.split(","):
        for algorithm in ALGORITHMS:
            try:
                directory = compress(options.model, options.out, scheme, algorithm, options.calibration)
            except LinnetError as error:
                print(f"skipped linnet {scheme} {algorithm}: {error}", flush=True)
                continue
            logits = linnet_logits(directory, rows)
            add(measure(f"linnet {scheme} {algorithm}", tensor_bytes(directory), logits, reference, rows))
    python = options.cache / "llama_cpp" / "bin" / "python"
    if not python.exists():
        print("skipped llama.cpp: not installed; `python bench/peers/install.py --only llama.cpp`", flush=True)
    for kind in ("BF16", *FILES) if python.exists() else ():
        file = options.out / f"{options.model.name}-{kind}.gguf"
        if not file.exists():
            maker = [str(python), str(BENCH / "peers" / "gguf_file.py"), str(options.model), str(file), kind]
            done = subprocess.run(maker, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
            if done.returncode:
                print(f"skipped llama.cpp {kind}: {done.stdout.strip().splitlines()[-1]}", flush=True)
                continue
        size, note = gguf_record(python, file)
        note = f"noise floor; {note}" if kind == "BF16" else note
        logits = llama_logits(python, file, rows, options.out)
        add(measure(f"llama.cpp {kind}", size, logits, reference, rows, note))
    page = "\n\n".join(("# Loss at equal bytes", table(losses), "## At equal or fewer bytes", pairs(losses))) + "\n"
    (options.out / "quality.md").write_text(page, encoding="utf-8")
    print(page)


if __name__ == "__main__":
    main()
