# SPDX-License-Identifier: Apache-2.0
"""Trains and writes the byte-level BPE tokenizer of the bundled model, with its chat template."""

from __future__ import annotations

import json
from pathlib import Path

from small_world.episode import END_OF_TEXT, END_OF_TURN, SPECIAL_TOKENS
from small_world.mix import stream
from small_world.prose import Prose
from small_world.world import World
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

SIZE = 2048
SAMPLE_CHARACTERS = 6_000_000
# Qwen 2's pattern: words keep the space before them, every digit stands alone.
PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{% if message['role'] not in ['system', 'user', 'assistant'] %}"
    "{{ raise_exception('unknown role: ' + message['role']) }}"
    "{% endif %}"
    "{{ '<|' + message['role'] + '|>' + message['content'] + '<|end|>' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)


def train_tokenizer(world: World, prose: Prose) -> Tokenizer:
    """Train on a sample of the training stream; special tokens get the first ids."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(PATTERN), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=SIZE,
        special_tokens=list(SPECIAL_TOKENS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_sample(world, prose), trainer)
    return tokenizer


def _sample(world: World, prose: Prose):
    characters = 0
    for episode in stream(world, prose, "tokenizer"):
        text = episode.text
        # Special tokens are no text to learn merges from.
        for token in SPECIAL_TOKENS:
            text = text.replace(token, "\n")
        yield text
        characters += len(text)
        if characters > SAMPLE_CHARACTERS:
            return


def write_tokenizer(tokenizer: Tokenizer, directory: Path, context_tokens: int) -> None:
    """Write tokenizer.json and tokenizer_config.json as transformers expects them."""
    directory.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(directory / "tokenizer.json"))
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": context_tokens,
        "bos_token": None,
        "eos_token": END_OF_TEXT,
        "pad_token": END_OF_TEXT,
        "additional_special_tokens": [token for token in SPECIAL_TOKENS if token != END_OF_TEXT],
        "clean_up_tokenization_spaces": False,
        "chat_template": CHAT_TEMPLATE,
    }
    text = json.dumps(config, indent=2, ensure_ascii=False)
    (directory / "tokenizer_config.json").write_text(text + "\n", encoding="utf-8")


def stop_ids(tokenizer: Tokenizer) -> list[int]:
    """Return the ids that end a generation."""
    return [tokenizer.token_to_id(END_OF_TEXT), tokenizer.token_to_id(END_OF_TURN)]
