# SPDX-License-Identifier: Apache-2.0
"""What is bundled is complete, small, and in the shape that loaders and evaluators expect."""

import collections
import json

import pytest
from safetensors import safe_open
from tokenizers import Tokenizer

from linnet.demo import TEXT_SEPARATOR, about_file, calibration_file, heldout_file, model_directory, questions_file

ABILITIES = {
    "language",
    "knowledge",
    "arithmetic",
    "reasoning",
    "in_context",
    "instruction",
    "recall",
    "dialogue",
    "refusal",
}
LARGEST_MODEL_BYTES = 12_000_000
LARGEST_PROMPTS_TOKENS = 120_000


@pytest.fixture(scope="module")
def tokenizer():
    return Tokenizer.from_file(str(model_directory() / "tokenizer.json"))


@pytest.fixture(scope="module")
def questions():
    return [json.loads(line) for line in questions_file().read_text(encoding="utf-8").splitlines()]


def asked(entry):
    """Return the prompt, or what is said in the chat."""
    return entry.get("prompt") or "\n".join(message["content"] for message in entry["messages"])


def test_every_question_has_its_fields(questions):
    for entry in questions:
        assert ("prompt" in entry) != ("messages" in entry)
        if "messages" in entry:
            roles = [message["role"] for message in entry["messages"]]
            assert roles == ["user", "assistant"] * (len(roles) // 2) + ["user"]
        else:
            assert entry["prompt"] == entry["prompt"].rstrip()
        if entry["kind"] == "choice":
            assert len(set(entry["choices"])) == len(entry["choices"]) >= 2
            assert all(choice.startswith(" ") for choice in entry["choices"])
            assert 0 <= entry["answer"] < len(entry["choices"])
        else:
            assert entry["kind"] == "exact"
            assert entry["answer"] == entry["answer"].strip() != ""
            assert entry["stop"]


def test_identifiers_and_prompts_are_unique_and_abilities_complete(questions):
    assert len({entry["id"] for entry in questions}) == len(questions)
    assert len({json.dumps(entry.get("prompt") or entry["messages"]) for entry in questions}) == len(questions)
    counts = collections.Counter(entry["ability"] for entry in questions)
    assert set(counts) == ABILITIES
    assert min(counts.values()) >= 120


def test_refusals_are_half_of_their_set(questions):
    refused = [entry["answer"].startswith("I am sorry") for entry in questions if entry["ability"] == "refusal"]
    assert 0.4 <= sum(refused) / len(refused) <= 0.6


def test_prompts_are_short_enough_to_be_evaluated_quickly(questions, tokenizer):
    lengths = {entry["id"]: len(tokenizer.encode(asked(entry)).ids) for entry in questions}
    assert sum(lengths.values()) < LARGEST_PROMPTS_TOKENS
    assert all(300 <= length <= 460 for identifier, length in lengths.items() if identifier.startswith("recall"))


def test_answers_fit_their_limit_and_do_not_merge_with_the_prompt(questions, tokenizer):
    for entry in questions:
        if "messages" in entry:
            assert len(tokenizer.encode(entry["answer"]).ids) < entry["max_tokens"]
            continue
        prompt = tokenizer.encode(entry["prompt"]).ids
        for answer in entry.get("choices", [f" {entry['answer']}\n"]):
            whole = tokenizer.encode(entry["prompt"] + answer).ids
            assert whole[: len(prompt)] == prompt, entry["id"]
            if entry["kind"] == "exact":
                assert len(whole) - len(prompt) <= entry["max_tokens"], entry["id"]


@pytest.mark.parametrize("text", ["Ada went home.\n", "12 + 30 = 42", "Zürich, 東京 🐦", "<|user|>Hello<|end|>"])
def test_tokenizer_round_trip(tokenizer, text):
    assert tokenizer.decode(tokenizer.encode(text).ids, skip_special_tokens=False) == text


def test_digits_and_special_tokens_are_single(tokenizer):
    assert tokenizer.encode("2026").tokens == ["2", "0", "2", "6"]
    for token in ("<|endoftext|>", "<|end|>", "<|system|>", "<|user|>", "<|assistant|>"):
        assert tokenizer.encode(token).ids == [tokenizer.token_to_id(token)]
    assert 1024 <= tokenizer.get_vocab_size() <= 2048


def test_chat_template_renders_what_was_trained():
    jinja2 = pytest.importorskip("jinja2")
    config = json.loads((model_directory() / "tokenizer_config.json").read_text(encoding="utf-8"))
    messages = [{"role": "user", "content": "Hello."}]
    rendered = jinja2.Template(config["chat_template"]).render(messages=messages, add_generation_prompt=True)
    assert rendered == "<|user|>Hello.<|end|><|assistant|>"


def test_model_is_small_and_has_the_tensors_of_its_config():
    file = model_directory() / "model.safetensors"
    assert file.stat().st_size <= LARGEST_MODEL_BYTES
    config = json.loads((model_directory() / "config.json").read_text(encoding="utf-8"))
    about = json.loads(about_file().read_text(encoding="utf-8"))
    with safe_open(file, framework="np") as tensors:
        shapes = {name: tensors.get_slice(name).get_shape() for name in tensors.keys()}  # noqa: SIM118
        assert {tensors.get_slice(name).get_dtype() for name in shapes} == {"BF16"}
    assert shapes["model.embed_tokens.weight"] == [config["vocab_size"], config["hidden_size"]]
    assert len(shapes) == 2 + 9 * config["num_hidden_layers"]
    assert about["parameters"] == sum(map(count, shapes.values()))


def count(shape):
    """Return how many numbers a tensor of this shape holds."""
    product = 1
    for size in shape:
        product *= size
    return product


def test_texts_are_separated_documents():
    for file, smallest in ((heldout_file(), 60_000), (calibration_file(), 120_000)):
        text = file.read_text(encoding="utf-8")
        assert len(text) >= smallest
        assert len(text.split(TEXT_SEPARATOR)) > 100
