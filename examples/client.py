# SPDX-License-Identifier: Apache-2.0
"""Talk to `linnet serve` with OpenAI's client, streaming; pip install openai.

linnet serve ./my-model &
python examples/client.py http://localhost:8000/v1
"""

import sys

from openai import OpenAI


def main(url: str, key: str = "none") -> None:
    client = OpenAI(base_url=url, api_key=key)
    model = client.models.list().data[0].id
    question = "What is the capital of France?"
    stream = client.chat.completions.create(
        model=model, messages=[{"role": "user", "content": question}], max_tokens=32, temperature=0, stream=True
    )
    for chunk in stream:
        if chunk.choices:
            print(chunk.choices[0].delta.content or "", end="", flush=True)
    print()


if __name__ == "__main__":
    main(*sys.argv[1:])
