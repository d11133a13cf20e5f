# SPDX-License-Identifier: Apache-2.0
"""Answer several prompts in one batch, then stream one.

python examples/generate.py ./my-model
"""

import sys

from linnet.api import LLM, SamplingParams


def main(model: str) -> None:
    greedy = SamplingParams(temperature=0.0, max_tokens=24)
    with LLM(model) as llm:
        prompts = ["Once upon a time", "The capital of France is"]
        for prompt, output in zip(prompts, llm.generate(prompts, greedy), strict=True):
            print(f"{prompt}{output.outputs[0].text}")
        for piece in llm.stream("One, two, three,", greedy):
            print(piece.text, end="", flush=True)
        print()


if __name__ == "__main__":
    main(sys.argv[1])
