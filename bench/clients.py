# SPDX-License-Identifier: Apache-2.0
"""Clients that people have, against a running server: chat, a stream, embeddings. One line each.

    python bench/clients.py http://localhost:8000 [--key KEY_FILE]

What is not installed is skipped and said; status 1 if one fails. None of them is a dependency of Linnet:
pip install litellm langchain-openai llama-index-llms-openai-like llama-index-embeddings-openai-like
"""

import argparse
import json
import sys
import traceback
import urllib.request
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

QUESTION = "What is the capital of France?"
TEXTS = ["a cat", "a hat", "rain"]


def agree(whole: str, pieces: list[str]) -> None:
    """A stream says what the answer says, in more than one piece."""
    assert whole, "the answer is empty"
    assert "".join(pieces) == whole, "the stream says something else than the answer"
    assert len(pieces) > 1, "the stream came in one piece"


def vectors(found: list[list[float]]) -> None:
    """One of length 1 for each text."""
    assert len(found) == len(TEXTS)
    assert all(abs(sum(number * number for number in one) - 1) < 1e-3 for one in found)


def with_litellm(url: str, key: str, model: str) -> None:
    """litellm."""
    import litellm

    litellm.telemetry = False
    given = {"model": f"openai/{model}", "api_base": f"{url}/v1", "api_key": key}
    asked = {**given, "messages": [{"role": "user", "content": QUESTION}], "temperature": 0, "max_tokens": 12}
    whole = litellm.completion(**asked)
    pieces = [part.choices[0].delta.content or "" for part in litellm.completion(**asked, stream=True)]
    agree(whole.choices[0].message.content, [piece for piece in pieces if piece])
    assert whole.usage.completion_tokens > 0
    vectors([one["embedding"] for one in litellm.embedding(**given, input=TEXTS).data])


def with_langchain(url: str, key: str, model: str) -> None:
    """langchain-openai. Its embeddings send token ids of OpenAI's tokenizer unless told not to."""
    from langchain_openai import ChatOpenAI, OpenAIEmbeddings

    chat = ChatOpenAI(model=model, base_url=f"{url}/v1", api_key=key, temperature=0, max_tokens=12)
    whole = chat.invoke(QUESTION)
    agree(whole.content, [part.content for part in chat.stream(QUESTION) if part.content])
    assert whole.usage_metadata["output_tokens"] > 0
    embeddings = OpenAIEmbeddings(model=model, base_url=f"{url}/v1", api_key=key, check_embedding_ctx_length=False)
    vectors(embeddings.embed_documents(TEXTS))


def with_llama_index(url: str, key: str, model: str) -> None:
    """llama-index, with its classes for servers that are like OpenAI's."""
    from llama_index.core.llms import ChatMessage
    from llama_index.embeddings.openai_like import OpenAILikeEmbedding
    from llama_index.llms.openai_like import OpenAILike

    where = {"api_base": f"{url}/v1", "api_key": key}
    llm = OpenAILike(model=model, is_chat_model=True, temperature=0, max_tokens=12, context_window=2048, **where)
    message = [ChatMessage(role="user", content=QUESTION)]
    whole = llm.chat(message).message.content
    agree(whole, [part.delta for part in llm.stream_chat(message) if part.delta])
    embedding = OpenAILikeEmbedding(model_name=model, **where)
    vectors(embedding.get_text_embedding_batch(TEXTS))


CLIENTS: dict[str, tuple[str, Callable[[str, str, str], None]]] = {
    "litellm": ("litellm", with_litellm),
    "langchain-openai": ("langchain_openai", with_langchain),
    "llama-index": ("llama_index", with_llama_index),
}


def main() -> int:
    """Each client that is there."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("url")
    parser.add_argument("--key", type=Path, help="file with the API key")
    options = parser.parse_args()
    url = options.url.rstrip("/")
    key = options.key.read_text().strip() if options.key else "none-needed"
    request = urllib.request.Request(f"{url}/v1/models", headers={"Authorization": f"Bearer {key}"})
    with urllib.request.urlopen(request, timeout=10) as answer:
        model = json.load(answer)["data"][0]["id"]
    failed = 0
    for name, (module, check) in CLIENTS.items():
        if find_spec(module) is None:
            print(f"{name}: skipped, it is not installed")
            continue
        try:
            check(url, key, model)
            print(f"{name}: chat, stream and embeddings as they should be")
        except Exception as error:
            failed += 1
            traceback.print_exc(file=sys.stderr)
            print(f"{name}: {type(error).__name__}: {str(error)[:300]}")
    return int(failed > 0)


if __name__ == "__main__":
    raise SystemExit(main())
