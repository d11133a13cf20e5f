# SPDX-License-Identifier: Apache-2.0
"""Other compressors, each behind one function; runs in the peer's own environment, so nothing of Linnet is imported.

    python compressors.py JOB    JOB: JSON of {peer, model, rows, target, bits, group_size, iterations}

``rows``: an .npy file, int32 [rows, tokens]. The last line out is JSON: seconds and processor seconds (model loading
and writing included, imports not) and the peak resident bytes.
"""

import json
import os
import sys
import time
from pathlib import Path
from typing import Any


def _now() -> tuple[float, float]:
    return time.perf_counter(), time.process_time()


def _since(began: tuple[float, float]) -> tuple[float, float]:
    """Seconds and processor seconds."""
    return time.perf_counter() - began[0], time.process_time() - began[1]


def llm_compressor(job: dict[str, Any], observer: str = "minmax") -> tuple[float, float]:
    """Its GPTQ with its own defaults, but for the observer of ranges."""
    import numpy
    from datasets import Dataset
    from llmcompressor import oneshot
    from llmcompressor.modifiers.quantization import GPTQModifier
    from transformers import AutoModelForCausalLM, AutoTokenizer

    began = _now()
    rows = numpy.load(job["rows"])
    data = Dataset.from_dict({"input_ids": rows.tolist(), "attention_mask": numpy.ones_like(rows).tolist()})
    weights = {
        "num_bits": job["bits"],
        "type": "int",
        "symmetric": True,
        "strategy": "group",
        "group_size": job["group_size"],
        "observer": observer,
    }
    groups = {"group_0": {"targets": ["Linear"], "weights": weights}}
    model = AutoModelForCausalLM.from_pretrained(job["model"], dtype="auto")
    oneshot(
        model=model,
        tokenizer=AutoTokenizer.from_pretrained(job["model"]),
        dataset=data,
        recipe=GPTQModifier(config_groups=groups, ignore=["lm_head"]),
        max_seq_length=rows.shape[1],
        num_calibration_samples=len(rows),
        output_dir=job["target"],
    )
    return _since(began)


def llm_compressor_mse(job: dict[str, Any]) -> tuple[float, float]:
    """The same with ranges of least squared error."""
    return llm_compressor(job, "mse")


def auto_round(job: dict[str, Any]) -> tuple[float, float]:
    """With as many iterations as asked, written as GPTQ's format, which Linnet reads."""
    import numpy
    import torch
    from auto_round import AutoRound
    from transformers import AutoModelForCausalLM, AutoTokenizer

    began = _now()
    rows = torch.from_numpy(numpy.load(job["rows"])).long()
    model = AutoModelForCausalLM.from_pretrained(job["model"], dtype="auto")
    batches = [{"input_ids": row[None], "attention_mask": torch.ones_like(row)[None]} for row in rows]
    rounder = AutoRound(
        model,
        AutoTokenizer.from_pretrained(job["model"]),
        bits=job["bits"],
        group_size=job["group_size"],
        iters=job["iterations"],
        sym=True,
        dataset=torch.utils.data.DataLoader(batches, batch_size=None),
        nsamples=len(rows),
        seqlen=rows.shape[1],
        batch_size=4,
        device_map="cpu",
    )
    target = Path(job["target"])
    rounder.quantize_and_save(str(target), format="auto_gptq")
    taken = _since(began)
    if not (target / "config.json").exists():  # it makes a folder of its own, named by model and bits
        (inside,) = (path.parent for path in target.glob("*/config.json"))
        for path in inside.iterdir():
            path.rename(target / path.name)
    return taken


def gptqmodel(job: dict[str, Any], mse: float = 0.0) -> tuple[float, float]:
    """Its GPTQ with its own defaults: columns ordered inside their groups and groups by what they carry."""
    os.environ.setdefault("GPTQMODEL_CPU_WORKERS", "2")  # its loader takes two, and it makes one on two cores
    import numpy
    from gptqmodel import BACKEND, GPTQModel, QuantizeConfig

    began = _now()
    rows = numpy.load(job["rows"])
    config = QuantizeConfig(bits=job["bits"], group_size=job["group_size"], sym=True, mse=mse, device="cpu")
    model = GPTQModel.load(job["model"], config, backend=BACKEND.TORCH)
    data = [{"input_ids": row.tolist(), "attention_mask": [1] * len(row)} for row in rows]
    model.quantize(data, batch_size=4, backend=BACKEND.TORCH)
    model.save(job["target"])
    return _since(began)


def gptqmodel_mse(job: dict[str, Any]) -> tuple[float, float]:
    """The same with ranges searched for the least sum of errors to the power that its authors advise."""
    return gptqmodel(job, 2.4)


PEERS = {
    "llm-compressor": llm_compressor,
    "llm-compressor mse": llm_compressor_mse,
    "auto-round": auto_round,
    "gptqmodel": gptqmodel,
    "gptqmodel mse": gptqmodel_mse,
}


def main() -> None:
    """One job."""
    job = json.loads(sys.argv[1])
    seconds, computed = PEERS[job["peer"]](job)
    status = Path("/proc/self/status").read_text()
    peak = next(line.split()[1] for line in status.splitlines() if line.startswith("VmHWM"))
    print(json.dumps({"seconds": seconds, "cpu_seconds": computed, "peak_bytes": 1024 * int(peak)}))


if __name__ == "__main__":
    main()
