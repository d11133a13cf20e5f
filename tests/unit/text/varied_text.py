# SPDX-License-Identifier: Apache-2.0
"""Text of every kind, from a seed: what tokenizers disagree about when they disagree."""

import random

_TEXT = (
    "the quick fox isn't 'sure', it's DON'T I'LL we've Über naïve Straße ПРИВЕТ мир Ելք ելք ქართული 日本語 テスト "
    "한국어 你好世界 مرحبا שלום हिन्दी ไทย 🙂 👩‍👩‍👧 🇩🇪 ﷽ \u00a0 \u200b ﬁ ½ ² Ⅷ ٣٤ 1 12 123 1234567 3.14 -7e10 0x1F "
    "def f(x): return x**2 # note {} [] <b>hi</b> </s> <s> <0x0A> ▁ ▁▁ a_b CamelCase HTTPServer https://a.b/c?d=e "
    "!!! ... ?! -- — “quoted” $5 100% C++ e\u0301 \ufffd \x7f"
)
WORDS = _TEXT.split(" ")
SPACES = (" ", " ", " ", "  ", "   ", "\t", "\n", "\n\n", "\r\n", " \n ", "        ", " " * 31, "\n" * 5, "\u3000", "")


def varied_text(seed: int, specials: tuple[str, ...] = (), pieces: int = 40) -> str:
    """Words, signs, runs of white space, single characters of all planes and ``specials``, in any order."""
    rng = random.Random(seed)
    parts = []
    for _ in range(rng.randint(0, pieces)):
        kind = rng.random()
        if kind < 0.6:
            parts.append(rng.choice(WORDS))
        elif kind < 0.7:
            parts.append("".join(rng.choice("abcdefgABC 0123456789'\".,\n") for _ in range(rng.randint(1, 12))))
        elif kind < 0.8:
            parts.append(
                chr(rng.choice((rng.randint(1, 0x24F), rng.randint(0x250, 0xD7FF), rng.randint(0xE000, 0x1FAFF))))
            )
        elif specials and kind < 0.9:
            parts.append(rng.choice(specials))
        parts.append(rng.choice(SPACES))
    return "".join(parts)
