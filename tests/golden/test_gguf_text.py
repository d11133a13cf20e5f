# SPDX-License-Identifier: Apache-2.0
"""Real GGUF files' tokenizers: ids and texts equal to transformers' over text of every kind."""

import random
import sys
from pathlib import Path

import pytest

from linnet.text import Tokenizer

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "unit" / "text"))
from varied_text import varied_text

transformers = pytest.importorskip("transformers")

pytestmark = pytest.mark.real
TEXTS = 400


def compare(path: Path, specials: tuple[str, ...]) -> Tokenizer:
    theirs = transformers.AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)
    ours = Tokenizer.open(path)
    seed = random.SystemRandom().randrange(1 << 30)
    print(f"seed {seed}")
    for number in range(seed, seed + TEXTS):
        text = varied_text(number, specials)
        ids = theirs(text)["input_ids"]
        assert ours.encode(text) == ids, f"text of seed {number}"
        assert ours.decode(ids, skip_special_tokens=False) == theirs.decode(ids), f"text of seed {number}"
    named = {name: token for name, token in theirs.special_tokens_map.items() if name != "mask_token"}
    assert ours.named_tokens == named
    if theirs.chat_template:
        messages = [{"role": "user", "content": "What is the capital of France?"}]
        prompt = ours.apply_chat_template(messages)
        assert prompt == theirs.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
    return ours


def test_smollm2(real_gguf: Path, real_model: Path) -> None:
    ours = compare(real_gguf, ("<|im_start|>", "<|im_end|>", "<repo_name>"))
    converted = Tokenizer.open(real_model)
    for number in range(TEXTS):
        text = varied_text(number, ("<|im_end|>",))
        assert ours.encode(text) == converted.encode(text)
    assert set(converted.eos_token_ids) <= set(ours.eos_token_ids)


def test_gemma3(gemma_gguf: Path) -> None:
    ours = compare(gemma_gguf, ("<start_of_turn>", "<end_of_turn>", "<unused7>", "<table>", "[multimodal]"))
    assert ours.adds_bos
    assert [ours.token(token) for token in ours.eos_token_ids] == ["<eos>", "<end_of_turn>"]
