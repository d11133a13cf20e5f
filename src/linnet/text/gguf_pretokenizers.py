# SPDX-License-Identifier: Apache-2.0
"""What ``tokenizer.ggml.model`` and ``tokenizer.ggml.pre`` mean: how a byte-level vocabulary's text is cut first.

The names are ggml's, of the model that first had a rule; that is why families are named here. Sources: the patterns in
those models' tokenizer.json, and llama.cpp's llama-vocab.cpp for which name means which pattern, which of them add BOS
by themselves and which look a whole piece up before merging. Where the two write a pattern differently (no ``(?i:``
in llama.cpp) the tokenizer.json's is taken. Each pattern cuts what the ones before it left.
"""

from collections.abc import Mapping
from dataclasses import dataclass

BYTE_LEVEL = "gpt2"
SENTENCE_PIECE = "llama"
WORD_PIECE = "bert"
UNIGRAM = "t5"
"""``tokenizer.ggml.model`` of byte-level BPE, SentencePiece's BPE, WordPiece, SentencePiece's unigram model."""

_ENGLISH = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
GPT2_PATTERN = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_SPACES = r"\s*[\r\n]+|\s+(?!\S)|\s+"
_WORDS = rf"{_ENGLISH}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+"
_OTHERS = r" ?[^\s\p{L}\p{N}]+[\r\n]*"
_LLAMA3 = rf"{_WORDS}|\p{{N}}{{1,3}}|{_OTHERS}|{_SPACES}"
_QWEN2 = rf"{_WORDS}|\p{{N}}|{_OTHERS}|{_SPACES}"
_QWEN35 = rf"{_ENGLISH}|[^\r\n\p{{L}}\p{{N}}]?[\p{{L}}\p{{M}}]+|\p{{N}}| ?[^\s\p{{L}}\p{{M}}\p{{N}}]+[\r\n]*|{_SPACES}"
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_CASED = (rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}*{_LOWER}+", rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}+{_LOWER}*")
_TEKKEN = rf"{_CASED[0]}|{_CASED[1]}|\p{{N}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n/]*|{_SPACES}"
_GPT4O = rf"{_CASED[0]}{_ENGLISH}?|{_CASED[1]}{_ENGLISH}?|\p{{N}}{{1,3}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n/]*|{_SPACES}"
_CJK = "[\u4e00-\u9fa5\u0800-\u4e00\uac00-\ud7ff]+"
_KANA = "[\u4e00-\u9fa5\u3040-\u309f\u30a0-\u30ff]+"
_CASED_LETTERS = """
41-5a 61-7a b5 c0-d6 d8-f6 f8-1ba 1bc-1bf 1c4-293 295-2af 370-373 376-377 37b-37d 37f 386 388-38a 38c 38e-3a1 3a3-3f5
3f7-481 48a-52f 531-556 10a0-10c5 13a0-13f5 13f8-13fd 1c90-1cba 1cbd-1cbf 1d00-1d2b 1d6b-1d77 1d79-1d9a 1e00-1f15
1f18-1f1d 1f20-1f45 1f48-1f4d 1f50-1f57 1f59 1f5b 1f5d 1f5f-1f7d 1f80-1fb4 1fb6-1fbc 1fbe 1fc2-1fc4 1fc6-1fcc 1fd0-1fd3
1fd6-1fdb 1fe0-1fec 1ff2-1ff4 1ff6-1ffc 2102 2107 210a-2113 2115 2119-211d 2124 2126 2128 212a-212d 212f-2134 2139
213c-213f 2145-2149 214e 2183-2184 2c00-2c7b 2c7e-2ce4 2ceb-2cee 2cf2-2cf3 a640-a66d a680-a69b a722-a76f a771-a787
a78b-a78e ab70-abbf fb00-fb06 fb13-fb17 ff21-ff3a ff41-ff5a 10400-1044f 104b0-104d3 104d8-104fb 10c80-10cb2
10cc0-10cf2 118a0-118df 1e900-1e943
"""
"""Code points of deepseek-llm's letters, of scripts with upper and lower case, as its tokenizer.json lists them."""
_DEEPSEEK_LETTERS = "".join("-".join(chr(int(end, 16)) for end in part.split("-")) for part in _CASED_LETTERS.split())
_DEEPSEEK3 = (
    r"[!\"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+"
    rf"| ?[\p{{P}}\p{{S}}]+[\r\n]*|{_SPACES}"
)


@dataclass(frozen=True)
class PreTokenizer:
    """``patterns`` in order; ``adds_bos`` where the file does not say; ``whole_pieces``: a piece that is a token as it
    stands is not merged."""

    patterns: tuple[str, ...]
    adds_bos: bool = False
    whole_pieces: bool = False


_RULES: tuple[tuple[tuple[str, ...], PreTokenizer], ...] = (
    (("", "default"), PreTokenizer((r"[\p{P}\$\+<=>\^~\|]+", GPT2_PATTERN, r"\p{N}+", "[0-9][0-9][0-9]"))),
    (
        (
            *("gpt-2", "phi-2", "mpt", "olmo", "jais", "trillion", "granite-docling", "exaone4", "gigachat", "mellum"),
            *("a.x-4.0", "modern-bert"),
        ),
        PreTokenizer((GPT2_PATTERN,)),
    ),
    (
        ("starcoder", "refact", "command-r", "codeshell", "exaone", "minerva-7b"),
        PreTokenizer((r"\p{N}", GPT2_PATTERN)),
    ),
    (
        ("smollm",),
        PreTokenizer((GPT2_PATTERN,)),
    ),  # as transformers reads it; llama.cpp cuts digits out first, as starcoder's
    (
        ("llama3", "llama-v3", "llama-bpe", "falcon3", "falcon-h1", "pixtral", "midm-2.0", "lfm2"),
        PreTokenizer((_LLAMA3,), adds_bos=True, whole_pieces=True),
    ),
    (("dbrx", "smaug-bpe", "glm4", "chatglm-bpe"), PreTokenizer((_LLAMA3,))),
    (
        ("qwen2", "stablelm2", "deepseek-r1-qwen", "kormo", "f2llmv2", "megrez", "hunyuan", "solar-open", "grok-2"),
        PreTokenizer((_QWEN2,)),
    ),
    (("qwen35",), PreTokenizer((_QWEN35,))),
    (("tekken",), PreTokenizer((_TEKKEN,), adds_bos=True, whole_pieces=True)),
    (("gpt-4o", "llama4", "kanana2"), PreTokenizer((_GPT4O,))),
    (
        ("deepseek-llm",),
        PreTokenizer(
            (
                r"[\r\n]",
                rf"\s?[{_DEEPSEEK_LETTERS}]+",
                "\\s?[!-/:-~\uff01-\uff0f\uff1a-\uff5e\u2018-\u201f\u3000-\u3002]+",
                r"\s+$",
                _CJK,
                r"\p{N}+",
            )
        ),
    ),
    (("deepseek-coder",), PreTokenizer((r"[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", _CJK, r"\p{N}"))),
    (("deepseek-v3", "hunyuan-dense", "joyai-llm"), PreTokenizer((r"\p{N}{1,3}", _KANA, _DEEPSEEK3))),
    (("falcon",), PreTokenizer((r"[\p{P}\$\+<=>\^~\|`]+", GPT2_PATTERN, "[0-9][0-9][0-9]"))),
)

PRE_TOKENIZERS: Mapping[str, PreTokenizer] = {name: rule for names, rule in _RULES for name in names}
"""By ``tokenizer.ggml.pre``; a file without that key means ``default``."""

ENDS_OF_GENERATION = frozenset(
    (
        *("<|eot_id|>", "<|im_end|>", "<|end|>", "<|return|>", "<|call|>", "<end_of_turn>", "<|endoftext|>"),
        *("<|eom_id|>", "<EOT>", "[EOT]", "[EOS]", "<|end_of_text|>", "<end_of_utterance>", "<eos>"),
        "<\uff5cend\u2581of\u2581sentence\uff5c>",
    )
)
"""Tokens at which llama.cpp stops whatever else the file says: few files name the end of a turn. Left out is ``</s>``,
which is the end where the file names it so, and elsewhere a piece of HTML."""
