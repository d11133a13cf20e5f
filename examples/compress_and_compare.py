# SPDX-License-Identifier: Apache-2.0
"""Compress a model with two schemes and print what each cost, measured on a text of yours.

python examples/compress_and_compare.py ./my-model notes.txt out
"""

import sys
from datetime import UTC, datetime
from pathlib import Path

from linnet.api import LLM
from linnet.compress import compress, make_recipe
from linnet.evals import EvaluationText, evaluate


def main(model: Path, text: Path, out: Path) -> None:
    read = EvaluationText(text.name, (text.read_text(encoding="utf-8"),))
    for scheme in ("W8A16-g32", "W4A16-g32"):
        result = compress(model, out / scheme, make_recipe(scheme, "rtn"))
        report = evaluate(
            result.path,
            model,
            lambda path, policy, kv_cache="auto": LLM(path, policy=policy, kv_cache=kv_cache),
            policy="fast",
            text=read,
            questions=None,
            max_tokens=2048,
            created=datetime.now(UTC).isoformat(timespec="seconds"),
            progress=lambda stage, done, total: None,
        )
        assert report.divergence is not None
        share = report.candidate.bytes / result.source_bytes
        print(f"{scheme}: {share:.0%} of the size, KL {report.divergence.mean.value:.4f} nats per token")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), Path(sys.argv[3]))
