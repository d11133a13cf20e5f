# SPDX-License-Identifier: Apache-2.0
"""Makes the files each contender reads out of one dense checkpoint; whatever is there already is kept.

    python bench/peers/convert.py [--shape llama-3.2-1b] [--only "llama.cpp Q4_0,openvino int4"]

Weights are random, so only their form matters here; quality.py asks about trained ones.
"""

import argparse
import json
import shutil
import subprocess
import sys
from pathlib import Path

BENCH = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(BENCH))

from peers.catalogue import LINNET, PEERS, Contender, Places  # noqa: E402


def commands(contender: Contender, places: Places, target: Path) -> list[list[str]]:
    """What makes ``target`` out of the dense checkpoint."""
    dense = str(places.dense)
    if contender.is_linnet or contender.adapter == "vllm":
        compress = [sys.executable, "-m", "linnet.cli.main", "compress", dense, "-o", str(target)]
        return [[*compress, "--scheme", contender.weights, "--algorithm", "rtn"]]
    assert contender.environment is not None
    bin_ = places.cache / contender.environment / "bin"
    kind = contender.weights.rpartition("-")[2]
    if contender.adapter == "llama":
        return [[str(bin_ / "python"), str(BENCH / "peers" / "gguf_file.py"), dense, str(target), kind]]
    if contender.adapter == "openvino":
        groups = ["--group-size", "128", "--ratio", "1.0"] if kind == "int4" else []
        export = [str(bin_ / "optimum-cli"), "export", "openvino", "-m", dense, "--task", "text-generation-with-past"]
        return [[*export, "--weight-format", kind, *groups, "--disable-convert-tokenizer", str(target)]]
    if contender.adapter == "onnxruntime":
        build = [str(bin_ / "python"), "-m", "onnxruntime_genai.models.builder", "-m", dense, "-i", dense]
        cache = str(target.with_name(target.name + ".cache"))
        return [[*build, "-o", str(target), "-p", kind, "-e", "cpu", "-c", cache, "--extra_options",
                 "int4_accuracy_level=4"]]  # fmt: skip
    if contender.adapter == "ctranslate2":
        return [[str(bin_ / "ct2-transformers-converter"), "--model", dense, "--quantization", kind, "--output_dir",
                 str(target)]]  # fmt: skip
    raise ValueError(f"{contender.name}: no converter")


def finish(contender: Contender, target: Path) -> None:
    """What the converters leave undone, or do not survive."""
    if contender.adapter == "onnxruntime":
        shutil.rmtree(target.with_name(target.name + ".cache"), ignore_errors=True)
    if contender.adapter == "ctranslate2":  # it writes null for a special token the tokenizer has not, and then fails
        file = target / "config.json"
        config = json.loads(file.read_text(encoding="utf-8"))
        for name in ("bos_token", "unk_token"):
            config[name] = config.get(name) or config["eos_token"]
        file.write_text(json.dumps(config, indent=2), encoding="utf-8")


def prepare(contender: Contender, places: Places) -> Path:
    """The contender's file, made if it is missing (under another name first, so that it is whole or absent)."""
    if not places.dense.exists():
        make = [sys.executable, str(BENCH / "make_model.py"), places.shape, str(places.dense)]
        subprocess.run(make, check=True)
    target = places.model(contender)
    if target.exists():
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    # An unfinished compression resumes under its own name, and publishes by renaming itself.
    half = target if contender.is_linnet or contender.adapter == "vllm" else target.with_name(f"half-{target.name}")
    for command in commands(contender, places, half):
        done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        if done.returncode:
            raise RuntimeError(f"{contender.name}: `{' '.join(command)}` failed:\n{done.stdout[-3000:]}")
    finish(contender, half)
    if half != target:
        half.rename(target)
    return target


def main() -> None:
    """Everything that can be made, or what is asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    known = {contender.name: contender for contender in (*LINNET.values(), *PEERS.values())}
    parser.add_argument("--shape", default="llama-3.2-1b")
    parser.add_argument("--work", type=Path, default=Path("scratch"))
    parser.add_argument("--cache", type=Path, default=Path("scratch/peers"))
    parser.add_argument("--only", default="", help="contenders, comma-separated; default: all that are installed")
    options = parser.parse_args()
    places = Places(options.work, options.cache, options.shape)
    wanted = [name for name in options.only.split(",") if name] or list(known)
    if unknown := [name for name in wanted if name not in known]:
        parser.error(f"unknown: {', '.join(unknown)}; known: {', '.join(known)}")
    for name in wanted:
        if reason := places.missing(known[name]):
            print(f"skipped: {reason}")
            continue
        print(f"{name}: {prepare(known[name], places)}", flush=True)


if __name__ == "__main__":
    main()
